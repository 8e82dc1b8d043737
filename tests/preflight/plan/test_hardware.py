"""Cards: the table, files in its place, and what is assumed of them."""

from dataclasses import asdict, fields, replace

import pytest
import yaml
from support.plans import CARD

from fire_opd_trl.preflight.plan.hardware import HARDWARE, Assumptions, chosen_hardware, of_measured


def test_a_card_has_a_little_more_than_its_name_says_in_decimal_and_less_in_binary():
    for name, said in (("h100", 80), ("h200", 141), ("a100", 80), ("l40s", 48), ("rtx4090", 24)):
        assert said * 0.99e9 < HARDWARE[name].memory < said * 2**30, name


def test_every_number_has_a_source():
    assert all("https://" in card.source for name, card in HARDWARE.items() if name != "cpu")
    for f in fields(Assumptions):
        assert f.metadata["help"] and f.metadata["word"] and len(f.metadata["source"]) > 20, f.name
        estimated = f.metadata["word"] == "estimate"
        assert estimated == f.metadata["source"].startswith("estimate"), f.name
        assert estimated or any(mark in f.metadata["source"] for mark in ("https://", "docs/", "the same")), f.name


def test_hardware_by_name_or_file(tmp_path):
    assert chosen_hardware("H100") is HARDWARE["h100"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(asdict(CARD)))
    assert chosen_hardware(str(file)) == CARD
    with pytest.raises(ValueError, match="neither a file nor one of: h100, h200.*Did you mean 'h100'?"):
        chosen_hardware("h10")


@pytest.mark.parametrize(
    "text, said",
    [("a: [", "no YAML file"), ("[1]", "exactly these names"), ("name: x", "exactly these names: name, memory")],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        chosen_hardware(str(file))


def test_a_file_written_by_hand_is_read(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "{name: 4090, memory: 25e9, operations: 989e12, bandwidth: 1e12, link: 1e10, network: 1e9, host: 3e10, "
        "source: data sheet, measured: true}"
    )
    hardware = chosen_hardware(str(file))
    assert (hardware.name, hardware.memory, hardware.operations) == ("4090", 25 * 10**9, 989e12)
    file.write_text(file.read_text().replace("25e9", ".inf"))
    with pytest.raises(ValueError, match="memory is inf. Give a number above 0"):
        chosen_hardware(str(file))


def test_a_rate_of_nothing_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**asdict(CARD), "link": 0}))
    with pytest.raises(ValueError, match="link is 0. Give a number above 0"):
        chosen_hardware(str(file))


def test_what_was_measured_is_reached_but_for_what_a_user_says():
    default, measured = Assumptions(), replace(CARD, measured=True)
    assert of_measured(default, CARD, set()) is default
    taken = of_measured(replace(default, link_fraction=0.5), measured, {"link_fraction"})
    assert (taken.decode_fraction, taken.link_fraction, taken.spread) == (1.0, 0.5, default.spread)
    assert taken.reserve == default.reserve and of_measured(default, replace(measured, name="cpu"), set()).reserve == 0
