//! The header before each vsock packet (virtio 1.2, section 5.10.6).

pub const HEADER: usize = 44;
pub const HOST_CID: u64 = 2;
pub const STREAM: u16 = 1;

pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a SHUTDOWN: it will not receive any more, and not send.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub from_cid: u64,
    pub to_cid: u64,
    pub from_port: u32,
    pub to_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// How much the sender has room for, and how much of what it was sent it has passed on.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn read(bytes: &[u8; HEADER]) -> Header {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let both = word(28);
        Header {
            from_cid: long(0),
            to_cid: long(8),
            from_port: word(16),
            to_port: word(20),
            len: word(24),
            kind: both as u16,
            op: (both >> 16) as u16,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.from_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.to_cid.to_le_bytes());
        let both = u32::from(self.kind) | u32::from(self.op) << 16;
        let words = [self.from_port, self.to_port, self.len, both, self.flags, self.buf_alloc, self.fwd_cnt];
        for (to, word) in bytes[16..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}
