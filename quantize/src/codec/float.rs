//! The plain floats: a block is one element. f16 and bf16 round to nearest, ties to even.

use super::{Overflow, scale};
use half::bf16;

/// The element itself.
pub(super) fn f32(x: &[f32; 1]) -> Result<f32, Overflow> {
    Ok(x[0])
}

/// Nearest f16; beyond 65 519 it would be infinite, so it is refused.
pub(super) fn f16(x: &[f32; 1]) -> Result<half::f16, Overflow> {
    scale(x[0])
}

/// Nearest bf16; the topmost half step of f32 is refused.
pub(super) fn bf16(x: &[f32; 1]) -> Result<bf16, Overflow> {
    Some(bf16::from_f32(x[0])).filter(|h| h.is_finite()).ok_or(Overflow)
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use edgeft_runtime::format::GgmlType;

    #[test]
    fn halves_round_to_even() {
        let bytes = |ty, v| {
            let mut out = Vec::new();
            encode(ty, &[v], &mut out).unwrap();
            out
        };
        // f16 near 1 steps by 2^-10: 1 + 2^-11 is a tie and goes down to even, 1 + 3 * 2^-11 goes up to 1 + 2^-9.
        assert_eq!(bytes(GgmlType::F16, 1.0 + f32::powi(2.0, -11)), 0x3c00u16.to_le_bytes());
        assert_eq!(bytes(GgmlType::F16, 1.0 + 3.0 * f32::powi(2.0, -11)), 0x3c02u16.to_le_bytes());
        // The smallest f16 subnormal is 2^-24; half of it is a tie and goes to 0.
        assert_eq!(bytes(GgmlType::F16, f32::powi(2.0, -24)), 1u16.to_le_bytes());
        assert_eq!(bytes(GgmlType::F16, f32::powi(2.0, -25)), 0u16.to_le_bytes());
        assert_eq!(bytes(GgmlType::F16, 65504.0), 0x7bffu16.to_le_bytes());
        // bf16 near 1 steps by 2^-7.
        assert_eq!(bytes(GgmlType::BF16, 1.0 + f32::powi(2.0, -8)), 0x3f80u16.to_le_bytes());
        assert_eq!(bytes(GgmlType::BF16, 1.0 + 3.0 * f32::powi(2.0, -8)), 0x3f82u16.to_le_bytes());
        assert_eq!(bytes(GgmlType::F32, -0.0), (-0.0f32).to_le_bytes());
    }
}
