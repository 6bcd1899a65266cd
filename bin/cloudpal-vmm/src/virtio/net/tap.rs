//! A TAP's descriptor: does it put a header before each frame, and what may be left to whoever reads them?
#![allow(unsafe_code)]

use super::feature;
use std::{fs::File, io, os::fd::AsRawFd};

/// linux/if_tun.h.
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// A TAP made with IFF_VNET_HDR, which takes a header of virtio 1 (12 bytes) before each frame from now on. False for
/// any other TAP, and for what is no TAP at all.
pub(super) fn takes_headers(tap: &File) -> bool {
    // SAFETY: all zeros are an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } != 0 {
        return false;
    }
    // SAFETY: TUNGETIFF has filled in the flags.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let size = super::HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    flags & libc::IFF_VNET_HDR != 0
        && unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) } == 0
}

/// Frames may come as the guest's driver takes them: without their checksum, or larger than the link's.
pub(super) fn set_offloads(tap: &File, acked: u64) -> io::Result<()> {
    let mut offloads = 0;
    if acked & feature::GUEST_CSUM != 0 {
        let four = if acked & feature::GUEST_TSO4 != 0 { TUN_F_TSO4 } else { 0 };
        let six = if acked & feature::GUEST_TSO6 != 0 { TUN_F_TSO6 } else { 0 };
        offloads = TUN_F_CSUM | four | six;
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
