//! Random bytes from the kernel, by its system call alone: inside the jail there is no file to open instead.

use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use std::io;

pub(crate) fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
