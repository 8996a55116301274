//! Bits where they matter: of each matrix how much the answers change when it is rounded, and from that the types that give the
//! least change for a file's size.
//!
//! - [`sensitivity`]: what each type of each matrix costs in bytes and in KL divergence
//! - [`front`]: the mixes that no other mix of these types beats, from the smallest file to the largest
//!
//! That the changes of single matrices add up is an assumption, as that a change grows with the square of the error; what a chosen
//! file really does is measured on the file.

pub mod front;
pub mod sensitivity;

pub use front::{Choice, Front, Tensor};
pub use sensitivity::{Probe, Sensitivity};
