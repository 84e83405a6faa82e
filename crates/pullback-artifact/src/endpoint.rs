//! Questions to a server that answers JSON with JSON.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use crate::control::Control;
use crate::error::ArtifactError;
use crate::hub::may_carry_secret;

/// How often the interruption flag is looked at while nothing comes in.
const POLL: Duration = Duration::from_millis(100);
/// A server that has not answered by then does not answer.
const PATIENCE: Duration = Duration::from_mins(5);
/// Characters of an answer that a message shows.
const SHOWN: usize = 200;

/// Sends JSON to `url` with POST and gives the answer. `key` goes into the header `authorization`, over a secure connection or
/// to this machine only.
///
/// # Errors
/// The server cannot be reached, refuses, or answers something else than JSON; the key would travel in the open; the work was
/// interrupted.
pub fn post_json(
    url: &str,
    key: Option<&str>,
    body: &Value,
    control: &Control,
) -> Result<Value, ArtifactError> {
    let wrong = |reason: String| ArtifactError::Server {
        url: url.to_owned(),
        reason,
    };
    if key.is_some() && !may_carry_secret(url) {
        return Err(wrong(
            "a key is only sent to https:// addresses and to this machine".to_owned(),
        ));
    }
    let (sender, receiver) = mpsc::channel();
    let (address, key, body) = (url.to_owned(), key.map(str::to_owned), body.to_string());
    // A thread that is no longer listened to ends by itself, at the latest when the server has not answered for long.
    thread::spawn(move || {
        let ask = || -> Result<(u16, String), ureq::Error> {
            let agent: Agent = Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(PATIENCE))
                .build()
                .into();
            let mut request = agent
                .post(&address)
                .header("content-type", "application/json");
            if let Some(key) = key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let mut answer = request.send(body.as_bytes())?;
            let status = answer.status().as_u16();
            Ok((status, answer.body_mut().read_to_string()?))
        };
        // Nobody may be listening any more.
        let _ = sender.send(ask().map_err(|error| error.to_string()));
    });
    let (status, text) = loop {
        control.check()?;
        match receiver.recv_timeout(POLL) {
            Ok(answer) => break answer.map_err(wrong)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(wrong("the connection broke off".to_owned()));
            }
        }
    };
    let shown: String = text.chars().take(SHOWN).collect();
    if !(200..300).contains(&status) {
        return Err(wrong(format!("status {status}: {shown}")));
    }
    serde_json::from_str(&text)
        .map_err(|error| wrong(format!("its answer is no JSON ({error}): {shown}")))
}
