//! What proxies answer, each line of it: a proxy of a few bytes on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::resolved::TlsConfig;
use crate::flow_record::FlowEnd;

const PATIENCE: Duration = Duration::from_secs(10);
const CREDENTIALS: &str = "user:secret\n";

fn proxy(scheme: ProxyScheme, address: SocketAddr, credentials: bool) -> Proxy {
    let mut config = ProxyConfig { scheme, address, credentials_file: None, tls: None };
    let dir = tempfile::tempdir().unwrap();
    if credentials {
        config.credentials_file = Some(private(dir.path(), "proxy.txt", CREDENTIALS));
    }
    Proxy::load(&"one".into(), &config).unwrap()
}

fn private(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Asks a proxy that hears so many bytes and then says the next of `answers`, one after the other, and is silent then.
fn ask(scheme: ProxyScheme, credentials: bool, answers: &[(usize, &[u8])]) -> Result<TargetStream, DialError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = proxy(scheme, listener.local_addr().unwrap(), credentials);
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (hears, says) in answers {
                stream.read_exact(&mut vec![0; *hears]).await.unwrap();
                stream.write_all(says).await.unwrap();
            }
            stream
        };
        let connecting = async { Ok(TcpStream::connect(proxy.address()).await?) };
        let opening = proxy.open(proxy.trouble().begin(), connecting, "10.0.0.1:443".parse().unwrap(), PATIENCE);
        let opening = tokio::time::timeout(PATIENCE * 2, opening);
        let (_stream, opened) = tokio::join!(answering, opening);
        opened.expect("the proxy said all it has to say")
    })
}

/// What a flow ends with, and whether another off-ramp is tried before.
fn meaning(opened: Result<TargetStream, DialError>) -> (FlowEnd, bool) {
    let error = opened.map(drop).unwrap_err();
    (error.flow_end(), error.is_of_the_way())
}

#[test]
fn each_answer_of_a_socks5_proxy_has_its_meaning() {
    let hello: (usize, &[u8]) = (3, b"\x05\0");
    let replied = |code: u8| {
        let reply = [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        ask(ProxyScheme::Socks5, false, &[hello, (10, &reply)])
    };
    assert!(replied(0).is_ok());
    for (code, end, of_the_way) in [
        (1, FlowEnd::TargetUnreachable, false),
        (2, FlowEnd::TargetUnreachable, false),
        (3, FlowEnd::TargetUnreachable, true),
        (4, FlowEnd::TargetUnreachable, false),
        (5, FlowEnd::TargetRefused, false),
        (6, FlowEnd::DialTimeout, false),
        (7, FlowEnd::TargetUnreachable, true),
        (8, FlowEnd::TargetUnreachable, true),
        (200, FlowEnd::TargetUnreachable, false),
    ] {
        assert_eq!(meaning(replied(code)), (end, of_the_way), "{code}");
    }
    let down = (FlowEnd::OfframpDown, true);
    assert_eq!(meaning(ask(ProxyScheme::Socks5, false, &[(3, b"\x05\xff")])), down, "wants credentials");
    assert_eq!(meaning(ask(ProxyScheme::Socks5, false, &[(3, b"\x05\x02")])), down, "wants what was not offered");
    assert_eq!(
        meaning(ask(ProxyScheme::Socks5, true, &[(4, b"\x05\x02"), (13, b"\x01\x01")])),
        down,
        "a wrong password"
    );
    assert_eq!(meaning(ask(ProxyScheme::Socks5, false, &[(3, b"HTTP/1.1 400")])), down, "not SOCKS");
    let reply: &[u8] = b"\x05\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert!(ask(ProxyScheme::Socks5, true, &[(4, b"\x05\x02"), (13, b"\x01\0"), (10, reply)]).is_ok());
}

#[test]
fn each_answer_of_an_http_proxy_has_its_meaning() {
    let request = b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nhost: 10.0.0.1:443\r\n\r\n".len();
    let answered = |head: &[u8]| ask(ProxyScheme::HttpConnect, false, &[(request, head)]);
    for success in ["HTTP/1.1 200 Connection established\r\n\r\n", "HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n"] {
        assert!(answered(success.as_bytes()).is_ok(), "{success}");
    }
    for (status, end, of_the_way) in [
        (403, FlowEnd::TargetUnreachable, false),
        (404, FlowEnd::TargetUnreachable, false),
        (405, FlowEnd::TargetUnreachable, true),
        (407, FlowEnd::OfframpDown, true),
        (500, FlowEnd::TargetUnreachable, false),
        (501, FlowEnd::TargetUnreachable, true),
        (502, FlowEnd::TargetUnreachable, false),
        (504, FlowEnd::DialTimeout, false),
        (301, FlowEnd::OfframpDown, true),
    ] {
        let head = format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(meaning(answered(head.as_bytes())), (end, of_the_way), "{status}");
    }
    let down = (FlowEnd::OfframpDown, true);
    assert_eq!(meaning(answered(b"SSH-2.0-OpenSSH\r\n")), down);
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 100_000]].concat();
    assert_eq!(meaning(answered(&endless)), down);
    let with = request + "proxy-authorization: Basic dXNlcjpzZWNyZXQ=\r\n".len();
    assert!(ask(ProxyScheme::HttpConnect, true, &[(with, b"HTTP/1.1 200 OK\r\n\r\n")]).is_ok());
}

#[test]
fn a_proxy_that_takes_connections_and_is_silent_is_passed_over() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = proxy(ProxyScheme::Socks5, listener.local_addr().unwrap(), false);
        let connecting = async { Ok(TcpStream::connect(proxy.address()).await?) };
        let opened = proxy
            .open(proxy.trouble().begin(), connecting, "10.0.0.1:443".parse().unwrap(), Duration::from_millis(50))
            .await;
        assert_eq!(meaning(opened), (FlowEnd::OfframpDown, true));
    });
}

#[test]
fn datagrams_go_to_a_relay_of_the_proxy_and_nowhere_else() {
    let relay = |bound: &[u8]| {
        let reply = [&[5, 0, 0], bound].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = proxy(ProxyScheme::Socks5, listener.local_addr().unwrap(), false);
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; 3]).await.unwrap();
                stream.write_all(&[5, 0]).await.unwrap();
                stream.read_exact(&mut [0; 10]).await.unwrap();
                stream.write_all(&reply).await.unwrap();
                stream
            };
            let connecting = async { Ok(TcpStream::connect(proxy.address()).await?) };
            let (_stream, associated) =
                tokio::join!(answering, proxy.associate(proxy.trouble().begin(), connecting, PATIENCE));
            associated.map(|(_control, relay)| relay.to_string()).map_err(|error| error.flow_end())
        })
    };
    let here = Ok("127.0.0.1:53".to_owned());
    assert_eq!(relay(&[1, 127, 0, 0, 1, 0, 53]), here);
    assert_eq!(relay(&[1, 0, 0, 0, 0, 0, 53]), here, "where the proxy was found");
    let v6 = |v6: std::net::Ipv6Addr| [&[4][..], &v6.octets(), &[0, 53]].concat();
    assert_eq!(relay(&v6("::".parse().unwrap())), here);
    assert_eq!(relay(&v6("::ffff:127.0.0.1".parse().unwrap())), here);
    for wrong in [
        &[1, 169, 254, 169, 254, 0, 53][..],
        &[1, 127, 0, 0, 1, 0, 0],
        &v6("::1".parse().unwrap()),
        &[3, 1, b'x', 0, 53],
        &[9, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(relay(wrong), Err(FlowEnd::OfframpDown), "{wrong:?}");
    }
}

#[test]
fn what_the_target_says_first_is_not_lost() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let request = b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nhost: 10.0.0.1:443\r\n\r\n".len();
    let mut opened =
        ask(ProxyScheme::HttpConnect, false, &[(request, b"HTTP/1.1 200 OK\r\n\r\n220 mail.example.com\r\n")]).unwrap();
    let mut heard = [0; 22];
    runtime.block_on(opened.read_exact(&mut heard)).unwrap();
    assert_eq!(&heard, b"220 mail.example.com\r\n");
}

#[test]
fn files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let refused = |change: &dyn Fn(&mut ProxyConfig)| {
        let address = SocketAddr::from(([127, 0, 0, 1], 1080));
        let mut config = ProxyConfig {
            scheme: ProxyScheme::Socks5,
            address,
            credentials_file: None,
            tls: Some(TlsConfig::default()),
        };
        change(&mut config);
        Proxy::load(&"one".into(), &config).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    let credentials = |text: &str, mode: u32| {
        fs::write(path("proxy.txt"), text).unwrap();
        fs::set_permissions(path("proxy.txt"), fs::Permissions::from_mode(mode)).unwrap();
        refused(&|config| config.credentials_file = Some(path("proxy.txt")))
    };
    assert_eq!(credentials("nobody", 0o600), "proxy.txt must hold one line, user:password, each of 1 to 255 bytes");
    assert_eq!(
        credentials(CREDENTIALS, 0o644),
        "proxy.txt has mode 0644: others than its owner may use it; set it with `chmod 600 proxy.txt`"
    );
    let tls = |tls: TlsConfig| refused(&|config| config.tls = Some(tls.clone()));
    let with_ca = |text: &str| {
        fs::write(path("ca.pem"), text).unwrap();
        tls(TlsConfig { ca_file: Some(path("ca.pem")), ..TlsConfig::default() })
    };
    assert_eq!(with_ca("nothing"), "ca.pem holds no certificate");
    assert!(with_ca("-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n").starts_with("ca.pem is not PEM: "));
    assert!(
        with_ca("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
            .starts_with("ca.pem holds a certificate that is no authority's: ")
    );
    let missing = tls(TlsConfig { ca_file: Some(path("none.pem")), ..TlsConfig::default() });
    assert!(missing.starts_with("none.pem cannot be read: "), "{missing}");
}
