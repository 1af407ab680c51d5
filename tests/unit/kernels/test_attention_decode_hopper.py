"""Hopper's decode kernel means what the plain reference says: emulated on any machine, compiled on a GPU."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from appliance_kernels.triton_kernels.attention_configs import DecodeConfig, HopperRing, card
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace
from tests.unit.kernels.attention_checks import assert_close, check_decode, check_shared, make_batch
from tests.unit.kernels.gluon_emulator import emulate
from tests.unit.kernels.triton_device import DEVICE

MODULE = "appliance_kernels.triton_kernels.attention_decode_hopper"
CONFIG = DecodeConfig(64, num_programs=5, min_tiles=1, num_warps=4, num_stages=2, hopper=HopperRing(64, 2))
HALF = {"dtype": torch.float16}


@pytest.fixture
def emulated(monkeypatch):
    if DEVICE.type == "cuda":
        pytest.skip("the compiled kernel is tested below")
    module = pytest.importorskip(MODULE)
    parts = [importlib.import_module(f"{MODULE}_{part}") for part in ("parts", "stream")]
    emulate(module, "decode_hopper_kernel", monkeypatch, *parts)


@pytest.mark.parametrize("num_programs", [1, 3, 40])
@pytest.mark.parametrize("ring", [HopperRing(64, 2), HopperRing(128, 3)])
def test_lines_of_any_length_however_many_programs_share_them(emulated, num_programs, ring):
    config = dataclasses.replace(CONFIG, num_programs=num_programs, hopper=ring)
    check_decode([1, 170, 17, 64, 33, 128, 300], config=config, **HALF)


@pytest.mark.parametrize(("window", "softcap"), [(1, None), (40, None), (100, 5.0), (None, 5.0)])
def test_windows_and_softcap(emulated, window, softcap):
    check_decode([170, 17, 101], window=window, softcap=softcap, config=CONFIG, **HALF)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_head_sizes_and_block_sizes(emulated, head_dim, block_size):
    check_decode([75, 20, 150], head_dim=head_dim, block_size=block_size, heads=(1, 3), config=CONFIG, **HALF)


@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (1, 7), (1, 16)])
def test_any_number_of_query_heads_for_each_kv_head(emulated, heads):
    check_decode([75, 20], heads=heads, config=CONFIG, **HALF)


@pytest.mark.parametrize("window", [None, 100, 20])
def test_a_shared_prefix_is_added_to_what_is_each_requests_own(emulated, window):
    check_shared([65, 81, 100, 130, 66], 4, alone=(2,), window=window, decode=CONFIG, **HALF)


def test_an_empty_row_becomes_zeros_and_what_pads_the_batch_is_no_work(emulated):
    batch = make_batch([(1, 40), (1, 9), (1, 1), (1, 5), (1, 7)], **HALF)
    seq_lens = batch.seq_lens.clone()
    seq_lens[[1, 3, 4]] = 0
    tables = batch.tables.clone()
    tables[[1, 3, 4]] = -(2**30)
    out = batch.poisoned_out()
    decode_attention(batch.q, batch.kv_cache, tables, seq_lens, batch.scale, out=out, config=CONFIG)
    assert out[1].abs().max() == 0
    assert_close(out[[0, 2]], batch.reference()[[0, 2]])
    assert torch.equal(out[3:].isnan(), batch.poisoned_out()[3:].isnan()), "padding is written"


def test_a_batch_of_nothing_but_padding_is_hardly_any_work(emulated):
    batch = make_batch([(1, 40), (1, 9)], **HALF)
    out = batch.poisoned_out()
    nothing = torch.zeros_like(batch.seq_lens)
    decode_attention(batch.q, batch.kv_cache, batch.tables, nothing, batch.scale, out=out, config=CONFIG)
    assert torch.equal(out[1:].isnan(), batch.poisoned_out()[1:].isnan())


def test_the_portable_kernel_takes_what_hoppers_does_not():
    """With the same plan, whose units are smaller than its tiles."""
    check_decode([75, 20, 170], config=CONFIG)
    check_decode([75, 20, 170], head_dim=80, config=CONFIG)
    check_shared([65, 81, 100], 4, decode=CONFIG, window=40)


@pytest.fixture
def hopper():
    if not card(DEVICE).wgmma:
        pytest.skip("not a Hopper card")
    return dataclasses.replace(CONFIG, num_programs=2 * card(DEVICE).multiprocessors, min_tiles=4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "ring"), [(64, (128, 3)), (128, (64, 3)), (128, (128, 2)), (256, (64, 2))])
@pytest.mark.parametrize("window", [None, 300])
def test_compiled(hopper, dtype, head_dim, ring, window):
    config = dataclasses.replace(hopper, hopper=HopperRing(*ring))
    shape = {"dtype": dtype, "head_dim": head_dim, "window": window}
    lengths = [1, 3001, 517, 64, 1023, 16, 2049, 700]
    for heads in ((8, 4), (2, 7), (1, 16)):
        check_decode(lengths, heads=heads, config=config, **shape)
        check_decode(lengths * 20, heads=heads, config=config, **shape)
        check_shared([600 + 7 * i for i in range(40)], 32, heads=heads, alone=(3, 39), decode=config, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_compiled_with_softcap_and_other_block_sizes(hopper, block_size):
    shape = {"dtype": torch.bfloat16, "head_dim": 128, "block_size": block_size, "softcap": 20.0}
    check_decode([3001, 5, 700], heads=(8, 2), config=hopper, **shape)


@pytest.mark.gpu
def test_one_captured_graph_serves_every_length(hopper):
    lengths = [3000, 2900, 2000, 2500]
    batch = make_batch([(1, n) for n in lengths], heads=(8, 4), head_dim=128, dtype=torch.bfloat16)
    workspace = decode_workspace(4, 32, 8, 128, hopper, DEVICE)
    seq_lens = batch.seq_lens.clone()
    out = batch.poisoned_out()

    def step(config: DecodeConfig, out: torch.Tensor) -> None:
        decode_attention(
            batch.q, batch.kv_cache, batch.tables, seq_lens, batch.scale, out=out, workspace=workspace, config=config
        )

    step(hopper, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(hopper, out)
    want = torch.empty_like(out)
    for now in ([1, 2, 3, 4], [3000, 1, 1, 1], [2999, 2899, 1999, 2499], [64, 0, 100, 1]):
        seq_lens.copy_(torch.tensor(now, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        step(dataclasses.replace(hopper, hopper=None), want)
        assert_close(out, want)
