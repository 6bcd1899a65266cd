//! Kernels: loaded into memory, or refused.

use cloudpal_vmm::{Error, Image, kernel, memory::Memory};

pub fn digest(input: &[u8]) {
    let memory = Memory::reserve(8).expect("memory");
    let initramfs = Image::Bytes(&input[input.len() / 2..]);
    match kernel::load(&memory, &Image::Bytes(input), Some(&initramfs)) {
        Ok(loaded) => {
            let (start, len) = loaded.initramfs.expect("the initramfs");
            assert!(start + len <= memory.bytes());
            assert!(loaded.setup_header.len() < 4096);
        }
        Err(error) => assert!(matches!(error, Error::Kernel(_)), "{error}"),
    }
}
