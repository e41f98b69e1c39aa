//! Runs of datagrams over the loopback of a network namespace of their own each.

use std::net::UdpSocket;
use std::time::Duration;

use socket2::{Domain, Type};

use super::*;
use crate::host::testing::{in_namespace, ip};

const ADDRESSES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// A target that sends and hears one datagram at a time, and the socket towards it.
fn connected(address: &str) -> (UdpSocket, DatagramSocket) {
    let target = UdpSocket::bind(address).unwrap();
    target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = target.local_addr().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None).unwrap();
    socket.connect(&to.into()).unwrap();
    (target, DatagramSocket::new(socket, to).unwrap())
}

/// A run of these sizes, its bytes counting up.
fn run(sizes: &[usize]) -> Vec<u8> {
    (0..=255).cycle().take(sizes.iter().sum()).collect()
}

/// What a target hears: as many datagrams as there are `sizes`.
fn heard(target: &UdpSocket, sizes: &[usize]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut datagram = vec![0; 65_536];
    for (number, size) in sizes.iter().enumerate() {
        let (length, _) = target.recv_from(&mut datagram).unwrap();
        assert_eq!(length, *size, "datagram {number}");
        all.extend_from_slice(&datagram[..length]);
    }
    all
}

/// Sends a run as a target that knows how.
fn answer(target: &UdpSocket, to: SocketAddr, run: &[u8], size: u16) {
    let sizes = [ControlMessage::UdpGsoSegments(&size)];
    let to = SockaddrStorage::from(to);
    let sent = sendmsg(target.as_raw_fd(), &[IoSlice::new(run)], &sizes, MsgFlags::empty(), Some(&to)).unwrap();
    assert_eq!(sent, run.len());
}

#[test]
fn a_run_arrives_as_its_datagrams() {
    in_namespace(async || {
        for address in ADDRESSES {
            let (target, socket) = connected(address);
            let mut longest = vec![1015; MAX_RUN_DATAGRAMS];
            longest[MAX_RUN_DATAGRAMS - 1] = 1;
            for sizes in [&[100, 100, 37][..], &[1], &[0], &[7, 7], &[2, 1], &longest, &[65_000], &[32_500; 2]] {
                let run = run(sizes);
                socket.try_send_run(&run, sizes[0]).unwrap();
                assert_eq!(heard(&target, sizes), run, "{address} {sizes:?}");
            }
            assert!(!socket.one_by_one.get());
        }
    });
}

#[test]
fn what_a_target_sends_together_is_read_together() {
    in_namespace(async || {
        for address in ADDRESSES {
            let (target, socket) = connected(address);
            let to = socket.local_addr().unwrap();
            let long = run(&[1200; 50]);
            answer(&target, to, &long, 1200);
            target.send_to(b"", to).unwrap();
            answer(&target, to, &long[..250], 100);
            target.send_to(b"alone", to).unwrap();
            let mut memory = vec![0; 65_536];
            let mut calls = 0;
            let mut datagrams_read = Vec::new();
            while datagrams_read.len() < 50 + 1 + 3 + 1 {
                let Received { bytes, datagram } = socket.recv(&mut memory).await.unwrap();
                datagrams_read.extend(datagrams(&memory[..bytes], datagram).map(<[u8]>::to_vec));
                calls += 1;
            }
            let mut sent: Vec<Vec<u8>> = long.chunks(1200).map(<[u8]>::to_vec).collect();
            sent.push(Vec::new());
            sent.extend(long[..250].chunks(100).map(<[u8]>::to_vec));
            sent.push(b"alone".to_vec());
            assert_eq!(datagrams_read, sent, "{address}");
            assert_eq!(calls, 4, "{address}: one for each call of the target");
            assert_eq!(socket.try_recv(&mut memory).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    });
}

#[test]
fn a_run_from_a_stranger_is_not_the_targets() {
    in_namespace(async || {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = target.local_addr().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        setsockopt(&socket, sockopt::UdpGroSegment, &true).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        answer(&stranger, local, &[1; 1000], 10);
        socket.connect(&to.into()).unwrap();
        let socket = DatagramSocket::new(socket, to).unwrap();
        answer(&target, local, &[2; 1000], 10);
        let mut memory = vec![0; 65_536];
        assert_eq!(socket.recv(&mut memory).await.unwrap(), Received { bytes: 1000, datagram: 10 });
        assert_eq!(memory[..1000], [2; 1000]);
    });
}

#[test]
fn datagrams_larger_than_the_path_are_no_run_but_go() {
    in_namespace(async || {
        ip("link set lo mtu 1500");
        for address in ADDRESSES {
            let (target, socket) = connected(address);
            let long = run(&[2000; 3]);
            assert!(socket.try_send_run(&long, 2000).unwrap_err().is_none(), "{address}");
            for datagram in datagrams(&long, 2000) {
                socket.try_send_run(datagram, 2000).unwrap();
            }
            assert_eq!(heard(&target, &[2000; 3]), long);
            // Those that fit are runs as before.
            assert!(!socket.one_by_one.get(), "{address}");
            socket.try_send_run(&long[..3600], 1200).unwrap();
            assert_eq!(heard(&target, &[1200; 3]), long[..3600]);
        }
    });
}

#[test]
fn a_path_without_runs_is_remembered() {
    in_namespace(async || {
        let (target, socket) = connected("127.0.0.1:0");
        let long = run(&[100; 3]);
        // More datagrams than any kernel takes: it says EINVAL, as one that takes none would.
        let many = vec![0; 60_000];
        assert!(socket.try_send_run(&many, 10).unwrap_err().is_none());
        assert!(socket.one_by_one.get());
        assert!(socket.try_send_run(&long, 100).unwrap_err().is_none());
        socket.try_send_run(&long[..100], 100).unwrap();
        assert_eq!(heard(&target, &[100]), long[..100]);
    });
}

#[test]
fn a_refusal_in_the_middle_is_told_once_and_the_next_run_goes() {
    in_namespace(async || {
        for address in ADDRESSES {
            let (target, socket) = connected(address);
            let to = target.local_addr().unwrap();
            let long = run(&[500; 10]);
            drop(target);
            socket.try_send_run(&long, 500).unwrap();
            let told = socket.try_send_run(&long, 500).unwrap_err().unwrap();
            assert_eq!(told.kind(), io::ErrorKind::ConnectionRefused, "{address}");
            let target = UdpSocket::bind(to).unwrap();
            socket.try_send_run(&long, 500).unwrap();
            assert_eq!(heard(&target, &[500; 10]), long);
            // What the kernel kept of the refused ones is gone too.
            assert!(receive(socket.socket.get_ref(), &mut [], MsgFlags::MSG_ERRQUEUE).is_err());
            assert_eq!(socket.try_recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    });
}
