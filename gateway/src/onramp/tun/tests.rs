//! Super-packets between the kernel of a network namespace and the device.

use std::future::poll_fn;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use portcullis_netstack::packet::Transport;
use portcullis_netstack::packet::build::{self, Reply};
use portcullis_netstack::{FiveTuple, IngressId, PacketBatch, Protocol};

use super::*;
use crate::host::testing::{in_namespace, ip, tun_config};

/// The host's address on the device, and one that is routed into it.
const PAIRS: [(&str, &str); 2] = [("100.97.0.1", "10.1.2.3"), ("fd00:97::1", "fd10::3")];

async fn device() -> Arc<TunDevice> {
    let device = TunDevice::create(&tun_config(&[], &[]), 1).await.unwrap();
    ip("route add 10.0.0.0/8 dev pcl0");
    ip("-6 route add fd10::/16 dev pcl0");
    Arc::new(device)
}

fn host_socket(address: &str, remote: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 4000)).unwrap();
    socket.connect((remote, 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn payload(len: usize) -> Vec<u8> {
    (0..=255).cycle().take(len).collect()
}

#[test]
fn datagrams_the_host_sends_together_come_as_one_packet() {
    in_namespace(async || {
        let mut reader = TunReader::new(device().await).unwrap();
        for (address, remote) in PAIRS {
            let socket = host_socket(address, remote);
            let payload = payload(537);
            let sizes = [ControlMessage::UdpGsoSegments(&100)];
            let parts = [IoSlice::new(&payload)];
            sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &parts, &sizes, MsgFlags::empty(), None).unwrap();
            socket.send(b"alone").unwrap();
            for expected in [payload.chunks(100).collect::<Vec<_>>(), vec![b"alone"]] {
                let (bytes, info) =
                    poll_fn(|cx| reader.poll_read(cx, |bytes, info| (bytes.to_vec(), info))).await.unwrap();
                let size = info.offload.and_then(|offload| offload.segment_size);
                assert_eq!(size, (expected.len() > 1).then_some(100), "{address}");
                let Arrival::Packet(packet) = info.parse(&bytes).unwrap() else { panic!("a whole packet") };
                assert_eq!(packet.tuple().destination(), socket.peer_addr().unwrap());
                let Transport::Udp(udp) = packet.transport() else { panic!("{packet:?}") };
                assert_eq!(udp.datagrams().collect::<Vec<_>>(), expected, "{address}");
            }
        }
    });
}

#[test]
fn answers_that_came_together_reach_the_host_as_its_datagrams() {
    in_namespace(async || {
        let mut writer = TunWriter::new(device().await);
        for (address, remote) in PAIRS {
            let socket = host_socket(address, remote);
            let tuple = FiveTuple {
                protocol: Protocol::Udp,
                source: address.parse().unwrap(),
                source_port: 4000,
                destination: remote.parse().unwrap(),
                destination_port: 53,
            };
            let reply = Reply { to: IngressId(0), tuple, mtu: 1400, identification: 1 };
            for one_by_one in [false, true] {
                writer.udp_one_by_one = one_by_one;
                let payload = payload(10_000);
                let mut batch = PacketBatch::new(1 << 20);
                assert_eq!(build::udp_run(&mut batch, reply, &payload, 1200), 9);
                assert_eq!(batch.len(), 1, "one packet");
                batch.drain(|_, packet, offload| writer.write(packet, offload).unwrap());
                assert_eq!(writer.udp_one_by_one, one_by_one, "the kernel took it");
                for expected in payload.chunks(1200) {
                    let mut datagram = [0; 1500];
                    let length = socket.recv(&mut datagram).unwrap();
                    assert_eq!(&datagram[..length], expected, "{address}");
                }
            }
        }
    });
}

#[test]
fn a_header_says_what_a_packet_is() {
    let of = |flags: u8, gso: u8, size: u16| {
        let [low, high] = size.to_ne_bytes();
        FrameInfo::of(&[flags, gso, 28, 0, low, high, 20, 0, 6, 0, 0x45])
    };
    let verify = ChecksumPolicy::Verify;
    let lacking = |segment_size| Some(Offload { segment_size });
    assert_eq!(of(0, 0, 0), FrameInfo { checksums: verify, ..FrameInfo::TRUSTED });
    assert_eq!(of(NEEDS_CHECKSUM, 0, 0), FrameInfo { offload: lacking(None), ..FrameInfo::TRUSTED });
    assert_eq!(of(NEEDS_CHECKSUM, GSO_TCP4, 1400), FrameInfo { offload: lacking(Some(1400)), ..FrameInfo::TRUSTED });
    assert_eq!(of(DATA_VALID, GSO_UDP, 1200), FrameInfo { offload: lacking(Some(1200)), ..FrameInfo::TRUSTED });
    assert_eq!(of(NEEDS_CHECKSUM, GSO_UDP | GSO_ECN, 0), FrameInfo { offload: lacking(Some(0)), ..FrameInfo::TRUSTED });
    assert_eq!(FrameInfo::of(&[1, 5]), FrameInfo { checksums: verify, ..FrameInfo::TRUSTED });
    let empty = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 100, 96, 0, 2, 10, 20, 0, 80, 0, 9, 0, 9, 0, 8, 0, 0];
    let mut packet = empty;
    let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    assert!(FrameInfo::TRUSTED.parse(&packet).is_ok());
    for size in [0, 100] {
        let info = FrameInfo { offload: lacking(Some(size)), ..FrameInfo::TRUSTED };
        assert_eq!(info.parse(&packet).unwrap_err(), DropReason::Malformed, "no payload to divide");
    }
}
