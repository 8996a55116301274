//! Through the front door, offline: one test binary.

mod server;
