//! The Linux side of the network: namespaces, TAPs, links, firewall, DNS and WireGuard.

pub mod namespace;
pub mod tap;
