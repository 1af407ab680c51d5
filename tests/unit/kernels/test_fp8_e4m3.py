"""FP8 E4M3 means what torch.float8_e4m3fn says: every code is read exactly; writing saturates and rounds to even."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

import triton
import triton.language as tl

from appliance_kernels.fp8_cache import from_e4m3, stored_as
from appliance_kernels.triton_kernels import fp8_e4m3

FP8 = torch.float8_e4m3fn
ALL_PAIRS = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.int16)


@triton.jit
def read_kernel(pairs, lower, upper, METHOD: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(pairs + place)
    if METHOD == "conversion":
        low, high = fp8_e4m3.pairs_by_conversion(x)
    elif METHOD == "packed bits":
        low, high = fp8_e4m3.pairs_by_packed_bits(x)
    elif METHOD == "bits":
        low, high = fp8_e4m3.pairs_by_bits(x)
    else:
        low, high = fp8_e4m3.e4m3_pairs_to_float16(x)
    tl.store(lower + place, low)
    tl.store(upper + place, high)


@triton.jit
def write_kernel(numbers, codes, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(codes + place, fp8_e4m3.float32_to_e4m3(tl.load(numbers + place)))


@pytest.mark.parametrize(
    "method",
    [
        "this device's",
        "bits",
        pytest.param("packed bits", marks=pytest.mark.gpu),
        pytest.param("conversion", marks=pytest.mark.gpu),
    ],
)
def test_every_pair_of_codes_is_read_exactly(method):
    if method == "conversion" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no e4m3 conversion")
    lower, upper = torch.zeros(2, 2**16, dtype=torch.float16, device=DEVICE)
    read_kernel[(64,)](ALL_PAIRS.to(DEVICE), lower, upper, METHOD=method, SIZE=1024)
    want = ALL_PAIRS.view(FP8).half().view(-1, 2).to(DEVICE)
    for got, column in ((lower, want[:, 0]), (upper, want[:, 1])):
        torch.testing.assert_close(got, column, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.signbit()[column == 0], column.signbit()[column == 0]), "-0 too"


def numbers_to_round() -> torch.Tensor:
    """Random ones of every size, and all codes, the points halfway between them, and the next float32 on each side."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    finite = codes[codes.isfinite()].sort().values
    edges = torch.cat((finite, (finite[1:] + finite[:-1]) / 2, torch.tensor([464.0, -464.0, 480.0, 1e-40, -1e-40])))
    inf = torch.tensor(torch.inf)
    edges = torch.cat((edges, edges.nextafter(inf), edges.nextafter(-inf), torch.tensor([torch.inf, -torch.inf])))
    sizes = torch.randn(8191) * 2.0 ** torch.randint(-16, 12, (8191,))
    numbers = torch.cat((edges, torch.tensor([torch.nan]), sizes))
    return numbers[: len(numbers) // 1024 * 1024]


def test_writing_saturates_and_rounds_to_even():
    numbers = numbers_to_round()
    codes = torch.zeros(len(numbers), dtype=torch.uint8, device=DEVICE)
    write_kernel[(len(numbers) // 1024,)](numbers.to(DEVICE), codes, SIZE=1024)
    want = stored_as(numbers, FP8)
    different = codes.cpu() != want.view(torch.uint8)
    assert not different.any(), list(zip(numbers[different].tolist(), want[different].tolist(), strict=True))[:5]


def test_what_is_stored_is_the_nearest_and_never_more_than_448():
    stored = stored_as(torch.tensor([1e9, torch.inf, -500.0, 449.0, torch.nan, 17.0, 19.0, 2**-10]), FP8).float()
    assert stored[:4].tolist() == [448.0, 448.0, -448.0, 448.0]
    assert stored[4].isnan()
    assert stored[5:].tolist() == [16.0, 20.0, 0.0], "ties to even"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_table_of_pairs_holds_every_code(dtype):
    codes = ALL_PAIRS.view(FP8).view(64, -1)
    got = from_e4m3(codes, dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got, codes.to(dtype), rtol=0, atol=0, equal_nan=True)
