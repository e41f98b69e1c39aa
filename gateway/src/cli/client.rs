//! The client side of the control socket.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ExitStatus;
use crate::config::Config;
use crate::control::api::{BarReport, BarRequest, DeviceInForce, ErrorBody, Problem, ReloadReport};

/// How long the gateway has to answer. Longer than it gives a request itself.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;

/// Why the running gateway did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the control socket.
    #[error("the gateway is not running (nothing answers at {})", .0.display())]
    NotRunning(PathBuf),
    /// The caller may not open the control socket.
    #[error("not permitted to open {}; ask as root or as a member of its group", .0.display())]
    SocketForbidden(PathBuf),
    /// The gateway does not let this caller do this.
    #[error("not permitted: {0}")]
    Forbidden(String),
    /// The gateway found the files bad and changed nothing.
    #[error("{error}")]
    Refused {
        /// In one sentence.
        error: String,
        /// Each problem.
        problems: Vec<Problem>,
        /// Devices that were barred all the same.
        barred: Vec<String>,
    },
    /// The gateway could not.
    #[error("{0}")]
    Failed(String),
    /// What answers is no gateway, or one that stopped in the middle.
    #[error("no usable answer at {}", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        #[source]
        source: BrokenAnswer,
    },
}

/// How an answer was unusable.
#[derive(Debug, thiserror::Error)]
pub enum BrokenAnswer {
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// Cut or too long.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// Not the JSON of this version.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// No answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl ClientError {
    /// What the process exits with.
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::NotRunning(_) => ExitStatus::NotRunning,
            Self::SocketForbidden(_) | Self::Forbidden(_) => ExitStatus::NotPermitted,
            Self::Refused { .. } => ExitStatus::BadConfig,
            Self::Failed(_) | Self::Broken { .. } => ExitStatus::Failed,
        }
    }

    /// Says it on standard error, each problem on a line.
    pub fn report(&self) -> ExitStatus {
        let mut err = io::stderr().lock();
        // Nobody reads standard error: the exit status still tells.
        let _ = writeln!(err, "portcullis: {self}");
        if let Self::Broken { source, .. } = self {
            let _ = writeln!(err, "  {source}");
        }
        if let Self::Refused { problems, barred, .. } = self {
            for problem in problems {
                let _ = writeln!(err, "{problem}");
            }
            if !barred.is_empty() {
                let _ =
                    writeln!(err, "barred now, because the directory takes their access away: {}", barred.join(", "));
            }
        }
        self.exit()
    }
}

/// An answer: the JSON as it came, and what it says.
#[derive(Debug)]
pub struct Answered<T> {
    /// The body.
    pub text: String,
    /// Its meaning.
    pub value: T,
}

/// `GET path` from the gateway at `socket`.
pub fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<Answered<T>, ClientError> {
    call(socket, Method::GET, path, None)
}

/// `POST path` with `body` to the gateway at `socket`.
pub fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<Answered<T>, ClientError> {
    let body = serde_json::to_vec(body).map_err(|source| broken(socket, source))?;
    call(socket, Method::POST, path, Some(body))
}

/// Which devices the running gateway has in force, and whether it admits them.
pub fn devices(config: &Config) -> Result<BTreeMap<String, bool>, ClientError> {
    let devices = get::<Vec<DeviceInForce>>(&config.control, "/v1/devices")?.value;
    Ok(devices.into_iter().map(|device| (device.device, device.admitted)).collect())
}

/// Has the running gateway bar `device` until it loads the directory again.
pub fn bar(config: &Config, device: &str) -> Result<BarReport, ClientError> {
    Ok(post(&config.control, "/v1/bar", &BarRequest { device: device.to_owned() })?.value)
}

/// Asks the running gateway to load policy and directory again; answers lines that say what changed.
pub fn reload(config: &Config) -> Result<Vec<String>, ClientError> {
    let report = post::<ReloadReport>(&config.control, "/v1/reload", &())?.value;
    Ok(report.changes.iter().map(ToString::to_string).collect())
}

fn broken(socket: &Path, source: impl Into<BrokenAnswer>) -> ClientError {
    ClientError::Broken { path: socket.to_owned(), source: source.into() }
}

fn call<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Answered<T>, ClientError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| broken(socket, source))?;
    let (status, bytes) = runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body))
            .await
            .unwrap_or_else(|_| Err(broken(socket, BrokenAnswer::Timeout)))
    })?;
    if status == StatusCode::OK {
        let value = serde_json::from_slice(&bytes).map_err(|source| broken(socket, source))?;
        return Ok(Answered { text: String::from_utf8_lossy(&bytes).into_owned(), value });
    }
    let ErrorBody { error, problems, barred } =
        serde_json::from_slice(&bytes).map_err(|source| broken(socket, source))?;
    Err(match status {
        StatusCode::FORBIDDEN => ClientError::Forbidden(error),
        StatusCode::UNPROCESSABLE_ENTITY => ClientError::Refused { error, problems, barred },
        _ => ClientError::Failed(error),
    })
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            ClientError::NotRunning(socket.to_owned())
        } else if error.kind() == ErrorKind::PermissionDenied {
            ClientError::SocketForbidden(socket.to_owned())
        } else {
            broken(socket, error)
        }
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|source| broken(socket, source))?;
    let mut request = Request::new(Full::new(Bytes::from(body.unwrap_or_default())));
    *request.method_mut() = method;
    *request.uri_mut() =
        path.parse().map_err(|_| ClientError::Failed("the request cannot be written down".to_owned()))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, header::HeaderValue::from_static("localhost"));
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(BrokenAnswer::Body)?;
        Ok::<_, BrokenAnswer>((status, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    let mut connected = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer.map_err(|source| broken(socket, source)),
            // The end of the connection shows in the exchange, with its reason.
            _ = &mut connection, if connected => connected = false,
        }
    }
}

/// A value as a part of a query string.
pub fn query_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use serde_json::Value;

    use super::*;

    /// A gateway that gives one answer.
    fn gateway(answer: &'static str) -> (tempfile::TempDir, PathBuf) {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        (dir, path)
    }

    fn exit(answer: &'static str) -> ExitStatus {
        let (_dir, path) = gateway(answer);
        get::<Value>(&path, "/v1/status").unwrap_err().exit()
    }

    #[test]
    fn exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.sock");
        assert_eq!(get::<Value>(&missing, "/").unwrap_err().exit(), ExitStatus::NotRunning);
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        assert_eq!(get::<Value>(&dead, "/").unwrap_err().exit(), ExitStatus::NotRunning);
        assert_eq!(ClientError::SocketForbidden(dead).exit(), ExitStatus::NotPermitted);

        assert_eq!(exit("HTTP/1.1 403 F\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}"), ExitStatus::NotPermitted);
        assert_eq!(exit("HTTP/1.1 422 U\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}"), ExitStatus::BadConfig);
        assert_eq!(exit("HTTP/1.1 404 N\r\ncontent-length: 13\r\n\r\n{\"error\":\"x\"}"), ExitStatus::Failed);
        assert_eq!(exit("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"), ExitStatus::Failed, "cut");
        assert_eq!(exit("SSH-2.0-hello\r\n"), ExitStatus::Failed, "not HTTP");
    }

    #[test]
    fn an_answer_is_kept_as_it_came() {
        let (_dir, path) = gateway("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{\"a\": 1}");
        let answered = get::<Value>(&path, "/v1/status").unwrap();
        assert_eq!((answered.text.as_str(), &answered.value["a"]), ("{\"a\": 1}", &Value::from(1)));
    }

    #[test]
    fn query_values_cannot_add_parameters() {
        assert_eq!(query_value("ann@example.com&limit=0 ü"), "ann%40example.com%26limit%3D0%20%C3%BC");
    }
}
