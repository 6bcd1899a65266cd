//! virtio-net on a real TAP, in a network namespace of its own: the host's TCP stack speaks to the driver of the test,
//! which leaves checksums and segmentation to the host, and takes them over.
#![allow(unsafe_code)]

mod driver;

use cloudpal_vmm::virtio::net::{HEADER, Net, RECEIVE, Settings, TRANSMIT, feature};
use driver::{BUFFERS, Rig, WRITE};
use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpListener,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 4] = [10, 9, 8, 1];
const GUEST: [u8; 4] = [10, 9, 8, 2];
const PORT: u16 = 4000;
const GUEST_PORT: u16 = 5000;
/// What the driver's segments, and the host's, have at most.
const SEGMENT: u16 = 1460;
const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;
const SYN: u8 = 2;
const PUSH_ACK: u8 = 0x18;
const OUT: u64 = BUFFERS + 0x10_0000;

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address(ip: [u8; 4]) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(ip) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data }
}

/// A TAP in a namespace that only this thread is in, with an address and a neighbour.
fn tap() -> io::Result<File> {
    // SAFETY: concerns this thread only, and takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros are an ifreq, and one argument of the calls below; each reads or writes no more than that.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        let mut ask = |fd: &dyn AsRawFd, what, value: libc::__c_anonymous_ifr_ifru| {
            request.ifr_ifru = value;
            check(libc::ioctl(fd.as_raw_fd(), what, &raw const request))
        };
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        ask(&tap, libc::TUNSETIFF, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })?;
        let mut mac: libc::sockaddr = std::mem::zeroed();
        mac.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in mac.sa_data.iter_mut().zip(HOST_MAC) {
            *to = from as libc::c_char;
        }
        let union = |address| libc::__c_anonymous_ifr_ifru { ifru_addr: address };
        ask(&socket, libc::SIOCSIFHWADDR, union(mac))?;
        ask(&socket, libc::SIOCSIFADDR, union(address(HOST)))?;
        ask(&socket, libc::SIOCSIFNETMASK, union(address([255, 255, 255, 0])))?;
        ask(&socket, libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as i16 })?;
        let mut neighbour: libc::arpreq = std::mem::zeroed();
        neighbour.arp_pa = address(GUEST);
        neighbour.arp_ha = mac;
        neighbour.arp_ha.sa_data[5] = GUEST_MAC[5] as libc::c_char;
        neighbour.arp_flags = libc::ATF_COM | libc::ATF_PERM;
        for (to, from) in neighbour.arp_dev.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSARP, &raw const neighbour))?;
    }
    Ok(tap)
}

/// The driver of the test, with half a TCP: it never loses anything, so it never sends anything twice.
struct Guest {
    rig: Rig<Net>,
    /// What it sends next, and what it expects next.
    sequence: u32,
    expected: u32,
    buffer_bytes: u32,
}

struct Frame {
    /// Flags, kind of segmentation, and segment size of the header; how many buffers it took.
    header: (u8, u8, u16, u16),
    flags: u8,
    sequence: u32,
    payload: Vec<u8>,
    checksum_is_right: bool,
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

impl Guest {
    fn new(features: u64, buffer_bytes: u32) -> io::Result<Guest> {
        let net = Net::new(tap()?, Settings { mac: GUEST_MAC, ..Settings::default() })?;
        let mut rig = Rig::fresh(net);
        rig.set_up(features, 16);
        for head in 0..16 {
            rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x1_0000, buffer_bytes, WRITE)]);
        }
        rig.notify(RECEIVE);
        Ok(Guest { rig, sequence: 1000, expected: 0, buffer_bytes })
    }

    /// A segment whose checksum, and whose cutting into smaller ones, is the host's affair.
    fn send(&mut self, flags: u8, payload: &[u8]) {
        let options: &[u8] = if flags == SYN { &[2, 4, (SEGMENT >> 8) as u8, SEGMENT as u8] } else { &[] };
        let tcp_len = 20 + options.len();
        let total = (20 + tcp_len + payload.len()) as u16;
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 1, 0, 0, 64, 6, 0, 0]);
        ip.extend(GUEST.into_iter().chain(HOST));
        let checksum = !folded(sum(&ip));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let large = payload.len() > usize::from(SEGMENT);
        let mut header = vec![NEEDS_CSUM, if large { TCPV4 } else { 0 }];
        header.extend((34 + tcp_len as u16).to_le_bytes());
        header.extend(if large { SEGMENT } else { 0 }.to_le_bytes());
        header.extend([34, 0, 16, 0, 0, 0]);
        let mut frame = [&HOST_MAC[..], &GUEST_MAC, &[8, 0]].concat();
        frame.extend(ip);
        frame.extend(GUEST_PORT.to_be_bytes().into_iter().chain(PORT.to_be_bytes()));
        frame.extend(self.sequence.to_be_bytes().into_iter().chain(self.expected.to_be_bytes()));
        frame.extend([(tcp_len as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(options);
        frame.extend(payload);
        self.rig.put(OUT, &[header, frame.clone()].concat());
        self.rig.chain(TRANSMIT, 0, &[(OUT, (HEADER + frame.len()) as u32, 0)]);
        self.rig.notify(TRANSMIT);
        self.sequence += payload.len() as u32 + u32::from(flags == SYN);
    }

    /// The next TCP segment for it.
    fn receive(&mut self, nth: &mut u16) -> Frame {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            assert!(Instant::now() < end, "nothing came");
            self.rig.notify(RECEIVE);
            if self.rig.used(RECEIVE) == *nth {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let (mut bytes, mut buffers) = (Vec::new(), 1);
            while buffers > 0 {
                let (head, len) = self.rig.answer(RECEIVE, *nth);
                let got = self.rig.bytes(BUFFERS + u64::from(head) * 0x1_0000, len as usize);
                if bytes.is_empty() {
                    buffers = u16::from_le_bytes([got[10], got[11]]);
                }
                bytes.extend(got);
                (*nth, buffers) = (*nth + 1, buffers - 1);
                self.rig.offer(RECEIVE, head as u16);
            }
            if let Some(frame) = parse(&bytes, self.buffer_bytes) {
                return frame;
            }
        }
    }
}

fn parse(bytes: &[u8], buffer_bytes: u32) -> Option<Frame> {
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (header, frame) = bytes.split_at(HEADER);
    let tcp = frame.get(34..).filter(|tcp| frame[12..14] == [8, 0] && frame[23] == 6 && tcp.len() >= 20)?;
    let tcp = &tcp[..usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20];
    assert_eq!(u32::from(half(10)), (bytes.len() as u32).div_ceil(buffer_bytes), "buffers of a frame");
    let pseudo = sum(&frame[26..34]) + 6 + tcp.len() as u32;
    Some(Frame {
        header: (header[0], header[1], half(4), half(10)),
        flags: tcp[13],
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        payload: tcp[usize::from(tcp[12] >> 4) * 4..].to_vec(),
        checksum_is_right: folded(pseudo + sum(tcp)) == 0xffff,
    })
}

/// Runs it in a thread of its own, unless this process may not.
fn with_tap(features: u64, buffer_bytes: u32, test: impl FnOnce(Guest) + Send + 'static) {
    let thread = std::thread::spawn(move || match Guest::new(features, buffer_bytes) {
        Ok(guest) => test(guest),
        Err(error) => eprintln!("skipped: no TAP in a namespace of its own here: {error}"),
    });
    thread.join().expect("the test");
}

/// Connects, has the host say something long, and says something long; returns the frames that came.
fn talk(mut guest: Guest) -> Vec<Frame> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::from(HOST), PORT)).expect("listens");
    let mut nth = 0;
    guest.send(SYN, &[]);
    let answer = guest.receive(&mut nth);
    assert_eq!(answer.flags, 0x12);
    guest.expected = answer.sequence + 1;
    guest.send(PUSH_ACK, b"");
    let (mut stream, _) = listener.accept().expect("a connection");
    let said: Vec<u8> = (0..8000_u32).map(|at| (at / 7) as u8).collect();
    stream.write_all(&said).expect("says");
    let (mut heard, mut frames): (Vec<u8>, _) = (Vec::new(), vec![answer]);
    while heard.len() < said.len() {
        let frame = guest.receive(&mut nth);
        heard.extend(&frame.payload);
        guest.expected += frame.payload.len() as u32;
        frames.push(frame);
        guest.send(PUSH_ACK, b"");
    }
    assert!(heard == said, "what the guest heard");
    let said: Vec<u8> = (0..6000_u32).map(|at| (at / 5) as u8).collect();
    guest.send(PUSH_ACK, &said);
    assert_eq!(guest.rig.device.device.handle().counts().dropped_frames, 0);
    let mut heard = vec![0; said.len()];
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    stream.read_exact(&mut heard).expect("what the guest said, cut by the host");
    assert!(heard == said, "what the host heard");
    frames
}

const MERGED: u64 = feature::OFFLOADS | feature::MRG_RXBUF;

#[test]
fn a_driver_that_takes_all_gets_large_frames_in_merged_buffers() {
    with_tap(MERGED, 2048, |guest| {
        let frames = talk(guest);
        let large = frames.iter().find(|frame| frame.payload.len() > 1460).expect("a large frame");
        assert_eq!((large.header.0 & NEEDS_CSUM, large.header.1, large.header.2), (1, TCPV4, SEGMENT));
        assert!(large.header.3 > 1, "it fills more than one buffer");
    });
}

#[test]
fn a_driver_without_merged_buffers_gets_them_in_one() {
    with_tap(feature::OFFLOADS, 0xffff, |guest| {
        assert!(talk(guest).iter().any(|frame| frame.payload.len() > 1460 && frame.header.3 == 1));
    });
}

#[test]
fn a_driver_that_takes_nothing_gets_frames_of_the_link_with_right_checksums() {
    with_tap(feature::CSUM | feature::HOST_TSO4, 2048, |guest| {
        for frame in talk(guest) {
            assert!(frame.payload.len() <= usize::from(SEGMENT) && frame.checksum_is_right);
            assert_eq!(frame.header, (0, 0, 0, 1));
        }
    });
}
