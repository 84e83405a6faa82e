//! A small Hugging Face hub on this machine: two servers, one that answers as the hub does, and one that holds the
//! large files, to which the first leads. It can be told to behave badly.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use pullback_artifact::sha256_bytes;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server treats those who ask for a repository.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Access {
    #[default]
    Open,
    /// Seen by all, given to the token `hf_good`.
    Gated,
    /// Seen with the token `hf_good` only.
    Private,
}

/// What the server does wrong when it sends a large file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Closes the connection after so many bytes.
    Cut(usize),
    /// Sends all of it, whatever part was asked for.
    NoRanges,
    /// Changes one byte.
    Corrupt,
    /// Sends more than it said.
    TooMuch,
    /// Answers with this status.
    Status(u16),
    /// Sends so many bytes and then nothing, without closing.
    Stall(usize),
}

#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) commit: String,
    pub(crate) access: Access,
    /// Each is used up by one sending of a large file.
    pub(crate) faults: Vec<Fault>,
    /// The status of the next answers of the first server.
    pub(crate) ill: Vec<u16>,
    pub(crate) requests: Vec<Request>,
}

pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Serves these files as `owner/name`.
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let state = Arc::new(Mutex::new(State {
            files: files
                .into_iter()
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .collect(),
            commit: COMMIT.to_owned(),
            ..State::default()
        }));
        let (hub, store) = (listener(), listener());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, store_address) = (address(&hub), address(&store));
        for listener in [hub, store] {
            let (state, store) = (Arc::clone(&state), store_address.clone());
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (state, store) = (Arc::clone(&state), store.clone());
                    thread::spawn(move || {
                        // The client may hang up at any time.
                        let _ = serve(&stream, &state, &store);
                    });
                }
            });
        }
        Self { endpoint, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// `METHOD path` of the requests since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
            .into_iter()
            .map(|request| format!("{} {}", request.method, request.path))
            .collect()
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Whether the hub keeps this file apart from the repository.
fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The name of a file's content.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    let hash = sha256_bytes(bytes);
    if is_large(name) {
        hash
    } else {
        hash[..40].to_owned()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>, store: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request {
        method,
        path,
        headers,
    };
    state.lock().unwrap().requests.push(request.clone());
    Reply { stream, request }.answer(state, store)
}

struct Reply<'a> {
    stream: &'a TcpStream,
    request: Request,
}

impl Reply<'_> {
    fn answer(&self, state: &Mutex<State>, store: &str) -> std::io::Result<()> {
        let path = self.request.path.as_str();
        if let Some(hash) = path.strip_prefix("/store/") {
            return self.send_large(state, hash);
        }
        let authorised = self
            .request
            .headers
            .get("authorization")
            .map(String::as_str)
            == Some("Bearer hf_good");
        let (files, commit, access, ill) = {
            let mut state = state.lock().unwrap();
            let ill = (!state.ill.is_empty()).then(|| state.ill.remove(0));
            (state.files.clone(), state.commit.clone(), state.access, ill)
        };
        if let Some(status) = ill {
            return self.send(status, &[], b"");
        }
        let hidden = access == Access::Private && !authorised;
        let api = "/api/models/owner/name/revision/";
        if hidden
            || !(path.starts_with(api)
                || path.starts_with("/owner/name/")
                || path.starts_with("/api/resolve-cache/"))
        {
            // As the hub does: what is not there and what may not be seen look the same without a token.
            let status = if self.request.headers.contains_key("authorization") {
                404
            } else {
                401
            };
            return self.send(status, &[("X-Error-Code", "RepoNotFound")], b"");
        }
        let known = |revision: &str| ["main", "refs%2Fpr%2F1", &commit].contains(&revision);
        if let Some(revision) = path.strip_prefix(api) {
            if !known(revision) {
                return self.send(404, &[("X-Error-Code", "RevisionNotFound")], b"");
            }
            let siblings: Vec<_> = files
                .keys()
                .map(|name| format!(r#"{{"rfilename": "{name}"}}"#))
                .collect();
            let body = format!(
                r#"{{"id": "owner/name", "sha": "{commit}", "siblings": [{}]}}"#,
                siblings.join(", ")
            );
            return self.send(200, &[], body.as_bytes());
        }
        if access == Access::Gated && !authorised {
            return self.send(401, &[("X-Error-Code", "GatedRepo")], b"");
        }
        if let Some(name) = path.strip_prefix("/api/resolve-cache/") {
            let bytes = &files[name];
            let etag = format!("\"{}\"", etag(name, bytes));
            return self.send(200, &[("ETag", &etag), ("X-Repo-Commit", &commit)], bytes);
        }
        let rest = path
            .strip_prefix("/owner/name/resolve/")
            .unwrap_or_default();
        let (revision, name) = rest.split_once('/').unwrap_or_default();
        let Some(bytes) = files.get(name).filter(|_| known(revision)) else {
            return self.send(404, &[("X-Error-Code", "EntryNotFound")], b"");
        };
        if !is_large(name) {
            let target = format!("/api/resolve-cache/{name}");
            return self.send(
                307,
                &[("Location", &target), ("X-Repo-Commit", &commit)],
                b"",
            );
        }
        let hash = sha256_bytes(bytes);
        let (target, size) = (format!("{store}/store/{hash}"), bytes.len().to_string());
        let headers = [
            ("Location", target.as_str()),
            ("X-Repo-Commit", &commit),
            ("X-Linked-Etag", &format!("\"{hash}\"")),
            ("X-Linked-Size", &size),
        ];
        self.send(302, &headers, b"Found")
    }

    fn send_large(&self, state: &Mutex<State>, hash: &str) -> std::io::Result<()> {
        if self.request.headers.contains_key("authorization") {
            // The token is for the hub alone.
            return self.send(400, &[], b"");
        }
        let (mut bytes, fault) = {
            let mut state = state.lock().unwrap();
            let bytes = state
                .files
                .values()
                .find(|bytes| sha256_bytes(bytes) == hash);
            let bytes = bytes.cloned().unwrap_or_default();
            let fault = (!state.faults.is_empty()).then(|| state.faults.remove(0));
            (bytes, fault)
        };
        let all = bytes.len();
        let range = self
            .request
            .headers
            .get("range")
            .filter(|_| !matches!(fault, Some(Fault::NoRanges)));
        let start = range.and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
        let span = start.map(|start| format!("bytes {start}-{}/{all}", all - 1));
        let (status, mut headers) = match &span {
            Some(span) => (206, vec![("Content-Range", span.as_str())]),
            None => (200, vec![]),
        };
        bytes.drain(..start.unwrap_or(0));
        headers.push(("Accept-Ranges", "bytes"));
        let said = bytes.len();
        let (kept, hang) = match fault {
            Some(Fault::Cut(kept)) => (kept.min(said), false),
            Some(Fault::Stall(kept)) => (kept.min(said), true),
            Some(Fault::Status(status)) => return self.send(status, &[], b""),
            Some(Fault::Corrupt) => {
                bytes[said / 2] ^= 1;
                (said, false)
            }
            Some(Fault::TooMuch) => {
                bytes.extend_from_slice(b"more");
                self.head(status, &headers, bytes.len())?;
                return self.body(&bytes);
            }
            Some(Fault::NoRanges) | None => (said, false),
        };
        self.head(status, &headers, said)?;
        self.body(&bytes[..kept])?;
        if hang {
            // Until the client gives up; a test that waits for it has failed long before.
            thread::sleep(Duration::from_mins(1));
        }
        Ok(())
    }

    fn send(&self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
        self.head(status, headers, body.len())?;
        self.body(body)
    }

    fn head(&self, status: u16, headers: &[(&str, &str)], length: usize) -> std::io::Result<()> {
        let mut text =
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let mut stream = self.stream;
        stream.write_all(text.as_bytes())
    }

    fn body(&self, body: &[u8]) -> std::io::Result<()> {
        let mut stream = self.stream;
        if self.request.method != "HEAD" {
            stream.write_all(body)?;
        }
        stream.flush()
    }
}
