"""Conversion to and from FP8 E4M3 (Micikevicius et al. 2022; torch.float8_e4m3fn): 1 sign, 4 exponent bits with bias 7,
3 of mantissa, no infinities, S.1111.111 is NaN, the largest is 448. Exact for every code, on every architecture.

Reading works on pairs: two neighbours of 8 bits are loaded as one int16, so tiles of an FP8 cache move through the
pipeline and through ldmatrix, transposed too, like tiles of any 16-bit type. One int16 gives an even and an odd column.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def e4m3_pairs_to_float16(pairs):
    """int16 [...], each the codes of two neighbours → (lower bytes, upper bytes), float16 [...] each."""
    if tl.target_info.cuda_capability_geq(8, 9):
        lower, upper = pairs_by_conversion(pairs)
    elif tl.target_info.is_cuda():
        lower, upper = pairs_by_packed_bits(pairs)
    else:
        lower, upper = pairs_by_bits(pairs)
    return lower, upper


@triton.jit
def pairs_by_conversion(pairs):
    """With the conversion instruction of compute capability 8.9 and above: one instruction an element."""
    lower, upper = tl.inline_asm_elementwise(
        """
        {
            .reg .b16 first, second;
            .reg .b32 of_first, of_second;
            mov.b32 {first, second}, $2;
            cvt.rn.f16x2.e4m3x2 of_first, first;
            cvt.rn.f16x2.e4m3x2 of_second, second;
            prmt.b32 $0, of_first, of_second, 0x5410;
            prmt.b32 $1, of_first, of_second, 0x7632;
        }
        """,
        "=r,=r,r",
        [pairs],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )
    return lower, upper


@triton.jit
def pairs_by_packed_bits(pairs):
    """`pairs_by_bits` on two pairs at once, which the compiler does not find by itself."""
    lower, upper = tl.inline_asm_elementwise(
        """
        {
            .reg .b32 shifted, magnitude, carry, bits, scale;
            mov.b32 scale, 0x5c005c00;
            shl.b32 shifted, $2, 8;
            shr.b32 magnitude, shifted, 1;
            and.b32 magnitude, magnitude, 0x3f803f80;
            add.u32 carry, magnitude, 0x00800080;
            lop3.b32 bits, carry, 0x40004000, magnitude, 0xea;
            lop3.b32 bits, shifted, 0x80008000, bits, 0xea;
            mul.f16x2 $0, bits, scale;
            shr.b32 magnitude, $2, 1;
            and.b32 magnitude, magnitude, 0x3f803f80;
            add.u32 carry, magnitude, 0x00800080;
            lop3.b32 bits, carry, 0x40004000, magnitude, 0xea;
            lop3.b32 bits, $2, 0x80008000, bits, 0xea;
            mul.f16x2 $1, bits, scale;
        }
        """,
        "=&r,=r,r",
        [pairs],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )
    return lower, upper


@triton.jit
def pairs_by_bits(pairs):
    return upper_byte_by_bits(pairs << 8), upper_byte_by_bits(pairs)


@triton.jit
def upper_byte_by_bits(pairs):
    """Exponent and mantissa in their places of a float16, whose bias is larger by 8, subnormals included."""
    magnitude = (pairs >> 1) & 0x3F80
    # Only NaN, all ones, carries into the exponent's highest bit, and with it the exponent is that of NaN.
    bits = magnitude | ((magnitude + 0x80) & 0x4000) | (pairs & -0x8000)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def float32_to_e4m3(x):
    """float32 → codes in uint8: to the nearest, ties to even, beyond ±448 the largest of that sign, NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    clamped = tl.minimum(magnitude, 0x43E00000)  # 448.0
    # Half a unit less a bit, and that bit if the last one kept is odd; then the exponent's bias changes from 127 to 7.
    normal = ((clamped + 0x7FFFF + ((clamped >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2⁻⁶ the codes count units of 2⁻⁹, the unit in the last place of 2¹⁴: the addition rounds to it.
    shifted = clamped.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(clamped < 0x3C800000, subnormal, normal)  # 2⁻⁶
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


def cache_operand(kv_cache: torch.Tensor) -> torch.Tensor:
    """The cache as the kernels take it: FP8 as bytes, as not every architecture's compiler knows the type."""
    return kv_cache.view(torch.uint8) if kv_cache.dtype == torch.float8_e4m3fn else kv_cache
