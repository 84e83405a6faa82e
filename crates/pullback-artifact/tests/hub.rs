//! Fetching from a hub that behaves, fails, cheats and hangs. It runs on this machine; no network.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "common/hub_server.rs"]
mod hub_server;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hub_server::{Access, COMMIT, Fault, HubServer, etag};
use pullback_artifact::{ArtifactError, Control, Hub, HubModel, HubReference};

/// A hub's server, a cache, and what was said.
struct World {
    dir: tempfile::TempDir,
    server: HubServer,
    said: Said,
    control: Control,
}

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Weights that are the same nowhere else.
fn weights(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| ((i * i) % 251) as u8 ^ (i >> 8) as u8)
        .collect()
}

const LENGTH: usize = 600_000;

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# A model".to_vec()),
        ("config.json", b"{\"a\": 1}".to_vec()),
        ("tokenizer.json", b"{\"b\": 2}".to_vec()),
        ("additional_chat_templates/tools.jinja", b"{{ x }}".to_vec()),
        ("model.safetensors", weights(LENGTH)),
        ("pytorch_model.bin", b"code".to_vec()),
        ("q/small.gguf", weights(1000)),
    ]
}

impl World {
    fn new() -> Self {
        Self::with(files())
    }

    fn with(files: Vec<(&str, Vec<u8>)>) -> Self {
        let said = Said::default();
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: HubServer::new(files),
            control: Control::lines(Box::new(said.clone()), Duration::from_millis(1)),
            said,
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(&self.server.endpoint, self.cache()).with_retry_pause(Duration::from_millis(10))
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.cache().join("models--owner--name").join(path)
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.at("snapshots").join(COMMIT).join(name)
    }

    fn blob(&self, name: &str) -> PathBuf {
        let state = self.server.state();
        self.at("blobs").join(etag(name, &state.files[name]))
    }

    fn incomplete(&self, name: &str) -> PathBuf {
        let mut path = self.blob(name).into_os_string();
        path.push(".incomplete");
        path.into()
    }

    fn fetch(&self, text: &str) -> Result<HubModel, ArtifactError> {
        self.hub().fetch(&reference(text), &self.control)
    }

    #[track_caller]
    fn fails(&self, text: &str, words: &[&str]) -> ArtifactError {
        let error = self.fetch(text).unwrap_err();
        holds(&error.to_string(), words);
        error
    }

    fn said(&self) -> String {
        String::from_utf8(self.said.0.lock().unwrap().clone()).unwrap()
    }

    /// The `range` headers of requests for large files, empty where there was none.
    fn ranges(&self) -> Vec<String> {
        let state = self.server.state();
        let large = state
            .requests
            .iter()
            .filter(|request| request.path.starts_with("/store/"));
        large
            .map(|request| request.headers.get("range").cloned().unwrap_or_default())
            .collect()
    }

    /// Nothing of the weights stands under a final name, and no revision is noted.
    #[track_caller]
    fn nothing_final(&self) {
        assert!(!self.blob("model.safetensors").exists());
        assert!(fs::symlink_metadata(self.snapshot("model.safetensors")).is_err());
        assert!(!self.at("refs/main").exists());
    }
}

fn reference(text: &str) -> HubReference {
    text.parse().unwrap()
}

#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn a_model_is_fetched_into_the_layout_of_the_hub() {
    let world = World::new();
    let fetched = world.fetch("owner/name").unwrap();
    assert_eq!(fetched.path, world.at("snapshots").join(COMMIT));
    assert_eq!(fetched.commit, COMMIT);
    assert!(!fetched.from_cache);
    let expected = files();
    for (name, bytes) in &expected {
        let path = world.snapshot(name);
        if ["README.md", "pytorch_model.bin", "q/small.gguf"].contains(name) {
            assert!(!path.exists(), "{name}");
            continue;
        }
        assert_eq!(&fs::read(&path).unwrap(), bytes, "{name}");
        // A link that still leads there when the cache is moved.
        let up = if name.contains('/') {
            "../../.."
        } else {
            "../.."
        };
        assert_eq!(
            fs::read_link(&path).unwrap(),
            Path::new(up).join("blobs").join(etag(name, bytes))
        );
    }
    assert_eq!(fs::read_to_string(world.at("refs/main")).unwrap(), COMMIT);
    let blobs = fs::read_dir(world.at("blobs")).unwrap().count();
    assert_eq!(blobs, 4, "nothing else was left");
    let asked = world.server.asked();
    assert!(!asked.iter().any(|line| line.contains("pytorch_model")));
    let mut moved = world.dir.path().join("moved");
    fs::rename(world.cache(), &moved).unwrap();
    moved.push("models--owner--name/snapshots");
    assert_eq!(
        fs::read(moved.join(COMMIT).join("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
    let total = LENGTH + 8 + 8 + 7;
    assert_eq!(total, 600_023);
    holds(
        &world.said(),
        &[
            "fetch owner/name: started, 600.0 kB",
            "fetch owner/name: done, 600.0 kB",
        ],
    );
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let world = World::new();
    let first = world.fetch("owner/name").unwrap();
    world.server.asked();
    let found = world.hub().find(&reference("owner/name")).unwrap().unwrap();
    assert_eq!(found.path, first.path);
    assert!(world.server.asked().is_empty(), "looking needs no network");
    assert!(world.fetch("owner/name").unwrap().from_cache);
    assert_eq!(
        world.server.asked(),
        ["GET /api/models/owner/name/revision/main"]
    );
    // A commit cannot change, so nothing is asked.
    let by_commit = format!("owner/name@{COMMIT}");
    assert!(world.fetch(&by_commit).unwrap().from_cache);
    assert!(world.server.asked().is_empty());
    // The branch moves on; what did not change is linked, not fetched.
    let newer = "f".repeat(40);
    {
        let mut state = world.server.state();
        state.commit.clone_from(&newer);
        state
            .files
            .insert("config.json".to_owned(), b"{\"a\": 2}".to_vec());
    }
    let second = world.fetch("owner/name").unwrap();
    assert_eq!(second.commit, newer);
    assert_eq!(
        fs::read(second.path.join("config.json")).unwrap(),
        b"{\"a\": 2}"
    );
    assert_eq!(
        fs::read(first.path.join("config.json")).unwrap(),
        b"{\"a\": 1}"
    );
    assert!(
        !world
            .server
            .asked()
            .iter()
            .any(|line| line.contains("/store/"))
    );
    assert_eq!(fs::read_to_string(world.at("refs/main")).unwrap(), newer);
}

#[test]
fn one_file_is_fetched_alone() {
    let world = World::new();
    let fetched = world.fetch("owner/name@refs/pr/1:q/small.gguf").unwrap();
    assert_eq!(fetched.path, world.snapshot("q/small.gguf"));
    assert_eq!(fs::read(&fetched.path).unwrap(), weights(1000));
    assert!(!world.snapshot("config.json").exists());
    assert_eq!(
        fs::read_to_string(world.at("refs/refs/pr/1")).unwrap(),
        COMMIT
    );
    assert!(
        world
            .hub()
            .find(&reference("owner/name@refs/pr/1:q/small.gguf"))
            .unwrap()
            .is_some()
    );
    assert!(
        world
            .hub()
            .find(&reference("owner/name@refs/pr/1"))
            .unwrap()
            .is_none()
    );
    world.fails("owner/name:other.gguf", &["other.gguf", "q/small.gguf"]);
}

#[test]
fn shards_come_as_the_index_names_them() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let sharded = || {
        vec![
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index.to_vec()),
            ("model-1.safetensors", weights(5000)),
            ("model-2.safetensors", weights(7000)),
            ("model-3.safetensors", weights(9000)),
        ]
    };
    let world = World::with(sharded());
    let fetched = world.fetch("owner/name").unwrap();
    for (name, length) in [("model-1.safetensors", 5000), ("model-2.safetensors", 7000)] {
        assert_eq!(fs::read(fetched.path.join(name)).unwrap(), weights(length));
    }
    assert!(!fetched.path.join("model-3.safetensors").exists());
    fs::remove_file(fetched.path.join("model-2.safetensors")).unwrap();
    assert!(
        world
            .hub()
            .find(&reference("owner/name"))
            .unwrap()
            .is_none()
    );
    let mut files = sharded();
    files.remove(4);
    let world = World::with(files);
    world.fails(
        "owner/name",
        &["names model-2.safetensors, which it does not hold"],
    );
    assert!(!world.at("refs/main").exists());
}

#[test]
fn a_broken_connection_is_gone_on_with() {
    let world = World::new();
    world.server.state().faults = vec![
        Fault::Cut(100_000),
        Fault::Cut(200_000),
        Fault::Status(503),
        Fault::Cut(50_000),
        Fault::Cut(1),
    ];
    let fetched = world.fetch("owner/name").unwrap();
    assert_eq!(
        fs::read(fetched.path.join("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
    assert_eq!(
        world.ranges(),
        [
            "",
            "bytes=100000-",
            "bytes=300000-",
            "bytes=300000-",
            "bytes=350000-",
            "bytes=350001-"
        ]
    );
    holds(&world.said(), &["model.safetensors: ", "trying again"]);
    assert!(!world.incomplete("model.safetensors").exists());
}

#[test]
fn an_interrupted_fetch_stops_at_once_and_goes_on_later() {
    let world = World::new();
    world.server.state().faults = vec![Fault::Stall(123_456)];
    let (part, control) = (world.incomplete("model.safetensors"), world.control.clone());
    let watcher = thread::spawn(move || {
        while fs::metadata(&part).map_or(0, |part| part.len()) < 123_456 {
            thread::sleep(Duration::from_millis(5));
        }
        control.interrupt();
        Instant::now()
    });
    let error = world.fetch("owner/name").unwrap_err();
    let late = watcher.join().unwrap().elapsed();
    assert!(error.is_interrupted(), "{error}");
    assert!(late < Duration::from_secs(2), "{late:?}");
    world.nothing_final();
    assert!(
        world
            .hub()
            .find(&reference("owner/name"))
            .unwrap()
            .is_none()
    );
    let part = world.incomplete("model.safetensors");
    assert_eq!(fs::read(part).unwrap(), weights(LENGTH)[..123_456]);

    let control = Control::hidden();
    let fetched = world
        .hub()
        .fetch(&reference("owner/name"), &control)
        .unwrap();
    assert_eq!(world.ranges(), ["", "bytes=123456-"]);
    assert_eq!(
        fs::read(fetched.path.join("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
}

#[test]
fn wrong_bytes_get_no_name() {
    for fault in [
        Fault::Corrupt,
        Fault::TooMuch,
        Fault::Cut(0),
        Fault::Status(500),
    ] {
        let world = World::new();
        world.server.state().faults = vec![fault.clone(); 3];
        let word = match fault {
            Fault::Corrupt => "SHA-256",
            Fault::TooMuch => "more came than the 600000 bytes",
            Fault::Cut(_) => "connection",
            _ => "status 500",
        };
        world.fails(
            "owner/name",
            &["model.safetensors of owner/name", "after 3 tries", word],
        );
        world.nothing_final();
        // The fourth time all is well.
        assert!(world.fetch("owner/name").is_ok(), "{fault:?}");
        assert_eq!(
            fs::read(world.snapshot("model.safetensors")).unwrap(),
            weights(LENGTH)
        );
    }
}

#[test]
fn a_left_part_that_is_wrong_is_noticed() {
    for left in [vec![7; 1000], vec![7; LENGTH], vec![7; LENGTH + 1]] {
        let world = World::new();
        fs::create_dir_all(world.at("blobs")).unwrap();
        fs::write(world.incomplete("model.safetensors"), &left).unwrap();
        // Where no check is possible, a part is not gone on with.
        fs::write(world.incomplete("config.json"), b"XX").unwrap();
        world.fetch("owner/name").unwrap();
        assert_eq!(
            fs::read(world.snapshot("model.safetensors")).unwrap(),
            weights(LENGTH)
        );
        assert_eq!(
            fs::read(world.snapshot("config.json")).unwrap(),
            b"{\"a\": 1}"
        );
    }
    // A server that cannot go on in the middle sends all of it.
    let world = World::new();
    world.server.state().faults = vec![Fault::Cut(1000), Fault::NoRanges];
    world.fetch("owner/name").unwrap();
    assert_eq!(world.ranges(), ["", "bytes=1000-"]);
    assert_eq!(
        fs::read(world.snapshot("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
}

#[test]
fn a_blob_of_the_wrong_size_and_a_link_to_nothing_are_replaced() {
    let world = World::new();
    world.fetch("owner/name").unwrap();
    fs::write(world.blob("model.safetensors"), b"short").unwrap();
    fs::remove_file(world.snapshot("model.safetensors")).unwrap();
    fs::remove_file(world.blob("config.json")).unwrap();
    assert!(
        world
            .hub()
            .find(&reference("owner/name"))
            .unwrap()
            .is_none()
    );
    assert!(!world.fetch("owner/name").unwrap().from_cache);
    assert_eq!(
        fs::read(world.snapshot("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
    assert_eq!(
        fs::read(world.snapshot("config.json")).unwrap(),
        b"{\"a\": 1}"
    );
}

#[test]
fn what_is_not_shown_says_why_and_what_to_do() {
    let world = World::new();
    world.fails(
        "owner/other",
        &["no repository `owner/other`", "private", "HF_TOKEN"],
    );
    world.fails("owner/name@v9", &["no revision `v9`"]);
    world.server.state().access = Access::Private;
    world.fails(
        "owner/name",
        &["may not exist", "private or gated", "HF_TOKEN"],
    );
    world.server.state().access = Access::Gated;
    let gated = format!("ask for access at {}/owner/name", world.server.endpoint);
    world.fails("owner/name", &["`owner/name` is gated", &gated, "HF_TOKEN"]);
    world.nothing_final();

    let with_token = |token| {
        let hub = world.hub().with_token(token);
        assert!(!format!("{hub:?}").contains("hf_"), "a token is not shown");
        hub.fetch(&reference("owner/name"), &world.control)
    };
    let error = with_token("hf_bad").unwrap_err().to_string();
    holds(&error, &["is gated", "token that was sent"]);
    world.server.state().access = Access::Private;
    let error = with_token("hf_bad").unwrap_err().to_string();
    holds(&error, &["no repository", "token that was sent"]);
    // The store refuses requests that bring the token.
    world.server.asked();
    assert!(!with_token("hf_good").unwrap().from_cache);
    let bearers = |path: &str| {
        let state = world.server.state();
        let mut there = state
            .requests
            .iter()
            .filter(|request| request.path.starts_with(path));
        there.all(|request| request.headers.contains_key("authorization"))
    };
    assert!(bearers("/owner/") && bearers("/api/") && !bearers("/store/"));
}

#[test]
fn repositories_that_hold_no_model_list_what_they_hold() {
    let world = World::with(vec![("b.gguf", vec![1]), ("a/c.gguf", vec![2])]);
    world.fails("owner/name", &["`owner/name:FILE`", "a/c.gguf, b.gguf"]);
    let world = World::with(vec![
        ("pytorch_model.bin", vec![1]),
        ("config.json", vec![2]),
    ]);
    world.fails("owner/name", &["neither model.safetensors nor"]);
    assert!(!world.cache().exists());
}

#[test]
fn offline_only_the_cache_is_used() {
    let world = World::new();
    let offline = world.hub().offline(true);
    let fails = |words: &[&str]| {
        let error = offline
            .fetch(&reference("owner/name"), &world.control)
            .unwrap_err();
        holds(&error.to_string(), words);
    };
    fails(&[
        "HF_HUB_OFFLINE",
        "lacks the revision `main`",
        "pullback pull owner/name",
    ]);
    world.fetch("owner/name").unwrap();
    world.server.asked();
    let found = offline
        .fetch(&reference("owner/name"), &world.control)
        .unwrap();
    assert!(found.from_cache);
    fs::remove_file(world.blob("tokenizer.json")).unwrap();
    fs::remove_file(world.snapshot("model.safetensors")).unwrap();
    fails(&["lacks tokenizer.json, model.safetensors of `owner/name`"]);
    assert!(world.server.asked().is_empty());
}

#[test]
fn a_hub_out_of_reach_leaves_the_cache() {
    let world = World::new();
    let away = |control: &Control| {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        Hub::new(format!("http://{port}"), world.cache())
            .with_retry_pause(Duration::from_millis(1))
            .fetch(&reference("owner/name"), control)
    };
    let error = away(&world.control).unwrap_err().to_string();
    holds(
        &error,
        &[
            "cannot reach http://127.0.0.1:",
            "after 3 tries",
            "refused",
            "HF_HUB_OFFLINE=1",
        ],
    );
    world.server.state().ill = vec![500, 429];
    world.fetch("owner/name").unwrap();
    assert!(away(&world.control).unwrap().from_cache);
    holds(
        &world.said(),
        &["cannot reach", "using what the cache holds"],
    );
    world.server.state().ill = vec![429; 3];
    assert!(world.fetch("owner/name").unwrap().from_cache);
    holds(&world.said(), &["too many requests"]);
}

#[test]
fn a_snapshot_that_python_made_is_used_as_it_lies() {
    let world = World::new();
    let state = world.server.state();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = &state.files[name];
        let hash = etag(name, bytes);
        fs::create_dir_all(world.at("blobs")).unwrap();
        fs::create_dir_all(world.snapshot("")).unwrap();
        fs::write(world.at("blobs").join(&hash), bytes).unwrap();
        symlink(Path::new("../../blobs").join(&hash), world.snapshot(name)).unwrap();
    }
    drop(state);
    fs::create_dir_all(world.at("refs")).unwrap();
    fs::write(world.at("refs/main"), COMMIT).unwrap();
    fs::create_dir_all(world.at(".no_exist").join(COMMIT)).unwrap();
    let offline = world.hub().offline(true);
    let found = offline
        .fetch(&reference("owner/name"), &world.control)
        .unwrap();
    assert_eq!(found.path, world.at("snapshots").join(COMMIT));
    assert_eq!(
        fs::read(found.path.join("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
    // Asked for anew, only what Python left out is fetched.
    world.fetch("owner/name").unwrap();
    assert!(
        world
            .snapshot("additional_chat_templates/tools.jinja")
            .exists()
    );
    assert!(world.ranges().is_empty());
}

#[test]
fn two_at_once_fetch_the_weights_once() {
    let world = World::new();
    let (one, two) = thread::scope(|scope| {
        let fetch = || {
            world
                .hub()
                .fetch(&reference("owner/name"), &Control::hidden())
        };
        let (one, two) = (scope.spawn(fetch), scope.spawn(fetch));
        (one.join().unwrap().unwrap(), two.join().unwrap().unwrap())
    });
    assert_eq!(one.path, two.path);
    assert_eq!(world.ranges(), [""]);
    assert_eq!(
        fs::read(world.snapshot("model.safetensors")).unwrap(),
        weights(LENGTH)
    );
}

#[test]
fn a_full_disk_is_named() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let world = World::new();
    fs::create_dir_all(world.at("blobs")).unwrap();
    // A device that takes no byte, in the place of the file that would be written.
    symlink("/dev/full", world.incomplete("config.json")).unwrap();
    let error = world.fails("owner/name", &["cannot write", "no space left"]);
    assert!(matches!(error, ArtifactError::Io { .. }));
    world.nothing_final();
}

#[test]
fn answers_that_lead_out_of_the_cache_are_refused() {
    let world = World::new();
    world.server.state().commit = "../../outside".to_owned();
    world.fails("owner/name", &["\"../../outside\" is no commit"]);
    assert!(!world.cache().exists());
    let mut files = files();
    files.push(("../additional_chat_templates/x.jinja", b"x".to_vec()));
    files.push(("additional_chat_templates/../../x.jinja", b"x".to_vec()));
    let world = World::with(files);
    world.fetch("owner/name").unwrap();
    assert!(
        !world
            .server
            .asked()
            .iter()
            .any(|line| line.contains("x.jinja"))
    );
}
