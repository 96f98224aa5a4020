//! Where flows come from: today the TUN device, whose packets the netstack turns into flows.

pub mod tun;
