"""`/blyan/mux/1`: many streams over one secured connection. docs/protocols/mux.md

frames: bytes <-> frames. machine: frames -> events and frames, without I/O.
driver: the machine on a connection, as libp2p wants it.
"""
