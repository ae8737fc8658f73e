"""The private names of py-libp2p 0.8.1 that the guards rest on, checked at start.

Only this package touches private names of libp2p; setup.cfg pins the version.
"""

from __future__ import annotations

from typing import Any

from libp2p.crypto import serialization
from libp2p.host.basic_host import BasicHost
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.swarm import Swarm
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub import pubsub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

PRIVATE: tuple[tuple[Any, str], ...] = (
    (BasicHost, "_swarm_stream_handler"),
    (Swarm, "_do_handle_inbound_connection"),
    (Swarm, "_build_remote_multiaddr"),
    (Pubsub, "_handle_dead_peer"),
    (Pubsub, "_next_seqno"),
    (Pubsub, "handle_sending_messages"),
    (pubsub, "env_to_send_in_RPC"),
    (Yamux, "_finalize_stream"),
    (Yamux, "_finalize_stream_locked"),
    (Yamux, "_write_frame"),
    (Yamux, "_read_data_body"),
    (YamuxStream, "_auto_tune_and_send_window_update"),
    (muxer_multistream, "Yamux"),
    (yamux, "YamuxStream"),
    (yamux, "MAX_WINDOW_SIZE"),
    (yamux, "read_exactly"),
    (MultiselectCommunicator, "read"),
    (serialization, "key_type_to_public_key_deserializer"),
    (AutoConnector, "record_disconnect"),
    (Swarm, "add_conn"),
)


def check_names(private: tuple[tuple[Any, str], ...] = PRIVATE) -> None:
    """Fail at once if this libp2p is not the one that the guards were written for."""
    for owner, name in private:
        if not hasattr(owner, name):
            raise ImportError(f"libp2p changed: it has no {owner.__name__}.{name}")
