//! This process' end of the channel to the daemon: lines, and descriptors beside them.
//!
//! Invariants: nothing here waits; lines and descriptors are bounded, and a daemon that breaks a bound is dropped like
//! one that went away. A descriptor that no message names is closed.

use cloudpal_model::{
    Rates,
    vmm::{Ask, File, FromVmm, MAX_FILES, MAX_LINE_BYTES, Machine, Reply, ToVmm},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send},
};
use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

pub struct Channel {
    socket: OwnedFd,
    pending: Vec<u8>,
    files: VecDeque<OwnedFd>,
}

/// An ask with its descriptors, in the order in which it names them.
pub struct Asked {
    pub message: ToVmm,
    pub files: Vec<OwnedFd>,
}

/// The other end is gone, or speaks another language.
#[derive(Debug)]
pub struct Lost;

impl Channel {
    pub fn new(socket: OwnedFd) -> io::Result<Channel> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Channel { socket, pending: Vec::new(), files: VecDeque::new() })
    }

    /// Takes in what has arrived.
    pub fn receive(&mut self) -> Result<(), Lost> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received =
                match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags) {
                    Ok(received) => received,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
                    Err(_) => return Err(Lost),
                };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    self.files.extend(files);
                }
            }
            if received.bytes == 0 {
                return Err(Lost);
            }
            self.pending.extend_from_slice(&chunk[..received.bytes]);
            if self.pending.len() > 2 * MAX_LINE_BYTES || self.files.len() > 2 * MAX_FILES {
                return Err(Lost);
            }
        }
    }

    /// The next whole message that has arrived.
    pub fn next(&mut self) -> Result<Option<Asked>, Lost> {
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            if line.len() > 1 {
                let message: ToVmm = serde_json::from_slice(&line).map_err(|_| Lost)?;
                let count = message.files.len();
                if count > self.files.len() {
                    return Err(Lost);
                }
                let files = self.files.drain(..count).collect();
                return Ok(Some(Asked { message, files }));
            }
        }
        if self.pending.len() > MAX_LINE_BYTES { Err(Lost) } else { Ok(None) }
    }

    /// Whether there is something to read, be it the end. It waits for nothing.
    pub fn has_more(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        self.pending.contains(&b'\n') || poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// A daemon that does not read is as good as gone: it may connect again.
    pub fn tell(&self, message: &FromVmm) -> Result<(), Lost> {
        let mut line = serde_json::to_vec(message).map_err(|_| Lost)?;
        line.push(b'\n');
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            return match send(&self.socket, &line, flags) {
                Ok(sent) if sent == line.len() => Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) | Err(_) => Err(Lost),
            };
        }
    }
}

/// Reads an ask and writes an answer that go nowhere: the first time would cost somebody who waits.
pub fn rehearse() -> Result<(), serde_json::Error> {
    let ask = Ask::Wake {
        machine: Machine { mac: [0; 6], rates: Rates::default(), library_os: false },
        verify_memory: false,
    };
    for ask in [ask, Ask::Release] {
        let message = ToVmm { id: u64::MAX, files: vec![File::State, File::Memory], ask };
        let read: ToVmm = serde_json::from_slice(&serde_json::to_vec(&message)?)?;
        serde_json::to_vec(&FromVmm::Reply { id: read.id, reply: Reply::Done })?;
    }
    Ok(())
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::{io::IoSlice, io::Write, os::unix::net::UnixStream};

    fn pair() -> (UnixStream, Channel) {
        let (daemon, vmm) = UnixStream::pair().expect("sockets");
        (daemon, Channel::new(vmm.into()).expect("a channel"))
    }

    fn send_with(stream: &UnixStream, bytes: &[u8], count: usize) {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = vec![null.as_fd(); count];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).expect("sent");
    }

    #[test]
    fn messages_come_whole_in_order_and_with_their_own_descriptors() {
        let (mut daemon, mut channel) = pair();
        let line = |id, files: &[File], ask| {
            serde_json::to_string(&ToVmm { id, files: files.to_vec(), ask }).expect("JSON") + "\n"
        };
        let first = line(1, &[File::Tap, File::Disk], Ask::Resume);
        let (head, tail) = first.split_at(10);
        send_with(&daemon, head.as_bytes(), 2);
        channel.receive().expect("a channel");
        assert!(channel.next().expect("a channel").is_none());
        daemon.write_all(format!("{tail}\n\n").as_bytes()).expect("sent");
        send_with(&daemon, line(2, &[File::Lock], Ask::Pause).as_bytes(), 1);
        channel.receive().expect("a channel");
        let asked = channel.next().expect("a channel").expect("a message");
        assert_eq!((asked.message.id, asked.files.len()), (1, 2));
        let asked = channel.next().expect("a channel").expect("a message");
        assert_eq!((asked.message.ask, asked.files.len()), (Ask::Pause, 1));
        assert!(channel.next().expect("a channel").is_none());
        drop(daemon);
        assert!(channel.receive().is_err());
    }

    #[test]
    fn what_breaks_a_bound_or_is_no_message_ends_the_channel() {
        let (mut daemon, mut channel) = pair();
        daemon.write_all(b"{\"id\":1,\"ask\":\"fly\"}\n").expect("sent");
        channel.receive().expect("a channel");
        assert!(channel.next().is_err());

        // A message that names more descriptors than came.
        let (mut daemon, mut channel) = pair();
        daemon.write_all(b"{\"id\":1,\"files\":[\"tap\"],\"ask\":\"resume\"}\n").expect("sent");
        channel.receive().expect("a channel");
        assert!(channel.next().is_err());

        let (mut daemon, mut channel) = pair();
        let writer = std::thread::spawn(move || daemon.write_all(&vec![b'x'; 4 * MAX_LINE_BYTES]).is_err());
        let lost = loop {
            std::thread::sleep(std::time::Duration::from_millis(1));
            match channel.receive().and_then(|()| channel.next()) {
                Ok(_) => {}
                Err(Lost) => break channel,
            }
        };
        drop(lost);
        assert!(writer.join().expect("a writer"));
    }
}
