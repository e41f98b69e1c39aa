//! UDP: what comes in goes out, in batches.

use std::future::poll_fn;

use portcullis::onramp::wireguard::socket::{Outbox, ReceiveBuffers, WireguardSocket};

/// Echoes for ever. A datagram the kernel has no room for is lost.
pub(super) async fn serve(socket: WireguardSocket) {
    let mut memory = ReceiveBuffers::default();
    let mut outbox = Outbox::default();
    loop {
        // An error is about an answer sent earlier: the next call goes on.
        let _ = poll_fn(|cx| socket.poll_receive(cx, &mut memory, |from, datagram| outbox.queue(from, datagram))).await;
        poll_fn(|cx| socket.poll_flush(cx, &mut outbox, |_, _| {})).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use crate::serve::testing::served;

    #[test]
    fn each_comes_back() {
        served("--udp-echo", async |address| {
            let exchange = move || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.connect(address).unwrap();
                for length in [0, 1, 9, 9, 9, 1200] {
                    socket.send(&vec![length as u8; length]).unwrap();
                    if length > 0 {
                        let mut buffer = [0; 2000];
                        assert_eq!(socket.recv(&mut buffer).unwrap(), length);
                    }
                }
            };
            tokio::task::spawn_blocking(exchange).await.unwrap();
        });
    }
}
