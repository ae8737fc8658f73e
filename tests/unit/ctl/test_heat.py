"""The heat map of experts on the terminal."""

from blyanctl.heat import ROW_CELLS, heat


def usage(*layers):
    experts = [
        {
            "name": f"layer{layer}.expert{expert}",
            "layer": layer,
            "expert": expert,
            "visits": visits,
        }
        for layer, row in enumerate(layers)
        for expert, visits in enumerate(row)
    ]
    return {"model": "m", "tokens": 7, "experts": experts}


def test_a_row_for_each_layer_and_darker_where_more_went():
    lines = heat(usage([0, 1, 50, 100], [100, 0, 0, 0])).splitlines()
    assert lines[2:4] == ["  layer 0 | ·▒█|", "  layer 1 |█   |"]
    assert lines[-1].startswith("hottest: layer0.expert3 100, layer1.expert0 100")
    assert lines[-1].endswith("layer0.expert1 1")  # nobody asked for the others


def test_many_experts_take_several_lines():
    lines = heat(usage([1] * (ROW_CELLS + 6))).splitlines()
    assert lines[2] == f"  layer 0 |{'█' * ROW_CELLS}|"
    assert lines[3] == f"  from {ROW_CELLS} |{'█' * 6}|"


def test_nothing_seen_is_a_sentence():
    assert "no expert was visited" in heat(usage([0, 0]))
    assert "no expert was visited" in heat(usage())
