//! Requests to the hub that an interruption ends at once.
//!
//! Each request runs in a thread of its own, which hands over what comes in. A thread that is no longer listened to ends
//! by itself, at the latest when its connection has been silent for [`SILENCE`].

use std::io::Read;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Proxy};

use crate::control::Control;
use crate::error::ArtifactError;
use crate::fetch::Failure;

/// How often the interruption flag is looked at while nothing comes in.
const POLL: Duration = Duration::from_millis(100);
/// A connection that brings nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes handed over at a time.
const BLOCK: usize = 1 << 18;
/// Blocks that may wait for being written.
const WAITING: usize = 4;
/// Redirections followed before one is taken for a circle.
const MOST_HOPS: usize = 10;

/// The hub's server and who asks.
pub(super) struct Web {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// Scheme, host and port: what a token may be sent to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Origin {
    secure: bool,
    authority: String,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str().to_ascii_lowercase();
        Some(Self { secure, authority })
    }

    fn is_this_machine(&self) -> bool {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        host == "localhost" || host == "[::1]" || host.starts_with("127.")
    }
}

/// Whether a key may be sent there: over a secure connection, or to this machine.
pub(crate) fn may_carry_secret(url: &str) -> bool {
    Origin::of(url).is_some_and(|origin| origin.secure || origin.is_this_machine())
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// What is said of the file: the answer before the way leads to another server, where its bytes lie.
    About,
    /// All of it.
    Whole,
    /// What comes from this byte on.
    From(u64),
}

/// The server's answer; what it holds comes block by block.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    /// Of the answers that led here.
    earlier: Vec<HeaderMap>,
    blocks: Receiver<Result<Vec<u8>, String>>,
}

impl Answer {
    /// A header of this answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header of this answer, else of the nearest one that led here.
    pub(super) fn any_header(&self, name: &str) -> Option<&str> {
        self.header(name).or_else(|| {
            self.earlier
                .iter()
                .rev()
                .find_map(|headers| headers.get(name)?.to_str().ok())
        })
    }

    /// The next block; none at the end.
    pub(super) fn next_block(&self, control: &Control) -> Result<Option<Vec<u8>>, Failure> {
        match wait(&self.blocks, control)? {
            Some(Ok(block)) => Ok(Some(block)),
            Some(Err(reason)) => Err(Failure::Broken(reason)),
            None => Ok(None),
        }
    }

    /// Everything, if it is not more than `most` bytes.
    pub(super) fn read_whole(&self, most: usize, control: &Control) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        while let Some(block) = self.next_block(control)? {
            whole.extend_from_slice(&block);
            if whole.len() > most {
                return Err(Failure::Broken(format!(
                    "the answer has more than {most} bytes"
                )));
            }
        }
        Ok(whole)
    }
}

impl Web {
    pub(super) fn new(endpoint: &str, token: Option<&str>) -> Result<Self, ArtifactError> {
        let endpoint = endpoint.trim_end_matches('/');
        let origin = Origin::of(endpoint).ok_or_else(|| ArtifactError::HubEndpoint {
            endpoint: endpoint.to_owned(),
        })?;
        if let Some(token) = token
            && !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(ArtifactError::HubToken);
        }
        // What runs on this machine is not asked for by way of another.
        let proxy = if origin.is_this_machine() {
            None
        } else {
            Proxy::try_from_env()
        };
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .user_agent(concat!("pullback/", env!("CARGO_PKG_VERSION")))
            // Sizes are those of the files, not of something packed.
            .accept_encoding("identity")
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Self {
            agent: Agent::new_with_config(config),
            endpoint: endpoint.to_owned(),
            origin,
            token: token.map(str::to_owned),
        })
    }

    /// The address of something on the server; each part becomes one part of the path.
    pub(super) fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> String {
        let mut url = self.endpoint.clone();
        for part in parts {
            url.push('/');
            for byte in part.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    url.push(char::from(byte));
                } else {
                    url.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        url
    }

    /// Asks, and goes where the answer points to. The token goes to the hub's own server only.
    pub(super) fn ask(&self, url: &str, ask: Ask, control: &Control) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        let mut earlier = Vec::new();
        loop {
            let mut answer = self.send(&url, ask, control)?;
            let target = match answer.status {
                301 | 302 | 303 | 307 | 308 => answer.header("location"),
                _ => None,
            };
            let Some(target) = target else {
                answer.earlier = earlier;
                return Ok(answer);
            };
            let target = follow(&url, target)
                .ok_or_else(|| Failure::Broken(format!("{url} leads to no address: {target}")))?;
            let origin = Origin::of(&target);
            if ask == Ask::About && origin != Origin::of(&url) {
                answer.earlier = earlier;
                return Ok(answer);
            }
            if self.origin.secure && !origin.is_some_and(|origin| origin.secure) {
                return Err(Failure::Broken(format!(
                    "{url} leads to an address that is not secure: {target}"
                )));
            }
            earlier.push(answer.headers);
            if earlier.len() > MOST_HOPS {
                return Err(Failure::Broken(format!("{url} leads round in a circle")));
            }
            url = target;
        }
    }

    fn send(&self, url: &str, ask: Ask, control: &Control) -> Result<Answer, Failure> {
        let mut request = match ask {
            Ask::About => self.agent.head(url),
            Ask::Whole | Ask::From(_) => self.agent.get(url),
        };
        if let Ask::From(start) = ask {
            request = request.header("range", format!("bytes={start}-"));
        }
        if let Some(token) = &self.token
            && Origin::of(url).as_ref() == Some(&self.origin)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (give_head, head) = mpsc::sync_channel(1);
        let (give_block, blocks) = mpsc::sync_channel(WAITING);
        // Nobody listens after an interruption; then the thread has nothing more to do.
        thread::spawn(move || {
            let response = match request.call() {
                Ok(response) => response,
                Err(error) => {
                    let _ = give_head.send(Err(describe(&error)));
                    return;
                }
            };
            let (parts, body) = response.into_parts();
            if give_head
                .send(Ok((parts.status.as_u16(), parts.headers)))
                .is_err()
            {
                return;
            }
            let mut body = body.into_reader();
            loop {
                let mut block = vec![0; BLOCK];
                let (block, last) = match body.read(&mut block) {
                    Ok(0) => return,
                    Ok(read) => {
                        block.truncate(read);
                        (Ok(block), false)
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => (Err(format!("the connection broke ({error})")), true),
                };
                if give_block.send(block).is_err() || last {
                    return;
                }
            }
        });
        match wait(&head, control)? {
            Some(Ok((status, headers))) => Ok(Answer {
                status,
                headers,
                earlier: Vec::new(),
                blocks,
            }),
            Some(Err(reason)) => Err(Failure::Broken(reason)),
            None => Err(Failure::Broken("the connection broke".to_owned())),
        }
    }
}

/// What comes next; none when there is nothing more.
fn wait<T>(receiver: &Receiver<T>, control: &Control) -> Result<Option<T>, Failure> {
    loop {
        control.check()?;
        match receiver.recv_timeout(POLL) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// What is wrong with a connection, in plain words where the client's own are hard to understand.
fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => {
            "the name of the server is not known here; is there a network?".to_owned()
        }
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            _ => error.to_string(),
        },
        ureq::Error::Timeout(_) => format!("no answer for {} seconds", SILENCE.as_secs()),
        other => other.to_string(),
    }
}

/// Where a `location` seen at `url` leads to.
fn follow(url: &str, location: &str) -> Option<String> {
    if Origin::of(location).is_some() {
        return Some(location.to_owned());
    }
    let (scheme, rest) = url.split_once("://")?;
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    location
        .starts_with('/')
        .then(|| format!("{scheme}://{authority}{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_made_and_followed() {
        let web = Web::new("https://Example.org/hub/", None).unwrap();
        assert_eq!(
            web.url(["a", "refs/pr/1", "x y#.json"]),
            "https://Example.org/hub/a/refs%2Fpr%2F1/x%20y%23.json"
        );
        let at = "https://a.org/x/y?z";
        for (location, leads) in [
            ("/b/c?d", Some("https://a.org/b/c?d")),
            ("//b.org/c", Some("https://b.org/c")),
            ("http://c.org/d", Some("http://c.org/d")),
            ("file:///etc/passwd", None),
            ("d", None),
        ] {
            assert_eq!(follow(at, location).as_deref(), leads, "{location}");
        }
        assert_eq!(Origin::of("https://A.org/x"), Origin::of("https://a.org"));
        assert_ne!(Origin::of("https://a.org"), Origin::of("http://a.org"));
        assert_ne!(
            Origin::of("https://a.org"),
            Origin::of("https://a.org:8443")
        );
        assert!(
            Origin::of("http://127.0.0.1:80/x")
                .unwrap()
                .is_this_machine()
        );
        assert!(!Origin::of("http://example.org").unwrap().is_this_machine());
    }

    #[test]
    fn endpoints_and_tokens_that_cannot_be_used_are_refused() {
        for endpoint in ["", "huggingface.co", "ftp://x.org", "https://", "http:// x"] {
            let Err(error) = Web::new(endpoint, None) else {
                panic!("{endpoint}")
            };
            assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
        }
        let Err(error) = Web::new("https://x.org", Some("hf_a\nb")) else {
            panic!()
        };
        assert!(error.to_string().contains("HF_TOKEN"));
        assert!(!error.to_string().contains("hf_a"), "a token is not shown");
    }
}
