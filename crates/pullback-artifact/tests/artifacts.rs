//! Artifact directories: whole or not at all, resumable, and clear about what they were made for.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use pullback_artifact::{
    ArtifactError, Control, MANIFEST_FILE, Manifest, ModelRef, ParentRef, PartialDir, read_json,
    remove_existing, sha256_bytes, write_atomic, write_json,
};
use serde_json::{Value, json};

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out").join("store");
    (dir, path)
}

fn model(name: &str, content: &str) -> ModelRef {
    ModelRef {
        name: name.to_owned(),
        digest: format!("sha256:{}", sha256_bytes(content.as_bytes())),
    }
}

fn parent(kind: &str, content: &str, path: &str) -> ParentRef {
    ParentRef {
        kind: kind.to_owned(),
        digest: format!("sha256:{}", sha256_bytes(content.as_bytes())),
        path: path.to_owned(),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_directory_appears_only_when_complete() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    assert!(!partial.is_resumed());
    assert_eq!(partial.final_path(), path);
    assert!(partial.path().ends_with("store.partial"));
    fs::write(partial.path().join("a.bin"), b"aaa").unwrap();
    fs::create_dir(partial.path().join("sub")).unwrap();
    fs::write(partial.path().join("sub/b.bin"), b"").unwrap();
    fs::create_dir(partial.path().join("checkpoint")).unwrap();
    fs::write(partial.path().join("checkpoint/state"), b"x").unwrap();
    fs::write(partial.path().join("optimizer.bin"), b"x").unwrap();
    fs::write(
        partial.path().join(".pullback-AbCdEf.tmp"),
        b"left by a killed run",
    )
    .unwrap();
    assert!(!path.exists());

    let manifest = partial
        .finish_skipping(
            Manifest::new("store", 7),
            &["checkpoint", "optimizer.bin", "not there"],
        )
        .unwrap();
    assert_eq!(names(&path), ["a.bin", "pullback.json", "sub"]);
    assert_eq!(names(path.parent().unwrap()), ["store"]);
    assert_eq!(
        manifest.files.keys().collect::<Vec<_>>(),
        ["a.bin", "sub/b.bin"]
    );
    assert_eq!(manifest.files["a.bin"].bytes, 3);
    assert_eq!(manifest.files["a.bin"].sha256, sha256_bytes(b"aaa"));
    assert_eq!(Manifest::load(&path).unwrap(), manifest);
    manifest.verify_files(&path, &Control::hidden()).unwrap();
}

#[test]
fn work_left_early_is_resumed() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    fs::write(partial.path().join("shard-0"), b"done").unwrap();
    drop(partial);

    let mut partial = PartialDir::open(&path).unwrap();
    assert!(partial.is_resumed());
    assert_eq!(fs::read(partial.path().join("shard-0")).unwrap(), b"done");
    partial.clear().unwrap();
    assert!(!partial.is_resumed());
    assert!(
        matches!(PartialDir::open(&path), Err(ArtifactError::InUse { .. })),
        "clear must keep the lock"
    );
    fs::write(partial.path().join("shard-1"), b"new").unwrap();
    let manifest = partial.finish(Manifest::new("store", 0)).unwrap();
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["shard-1"]);
}

#[test]
fn two_cannot_write_at_once() {
    let (_scratch, path) = scratch();
    let first = PartialDir::open(&path).unwrap();
    let error = PartialDir::open(&path).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("store.partial is being written by another pullback process"),
        "{error}"
    );
    drop(first);
    PartialDir::open(&path).unwrap();
}

#[test]
fn an_existing_output_is_not_touched() {
    let (_scratch, path) = scratch();
    PartialDir::open(&path)
        .unwrap()
        .finish(Manifest::new("store", 0))
        .unwrap();
    let error = PartialDir::open(&path).unwrap_err().to_string();
    assert!(
        error.contains(
            "store already exists: use --force to replace it, or give another name with -o"
        ),
        "{error}"
    );
    assert_eq!(names(path.parent().unwrap()), ["store"]);
}

#[test]
fn an_output_that_comes_into_being_meanwhile_is_not_overwritten() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    fs::write(partial.path().join("a"), b"mine").unwrap();
    fs::create_dir(&path).unwrap();
    let error = partial.finish(Manifest::new("store", 0)).unwrap_err();
    assert!(matches!(error, ArtifactError::Exists { .. }));
    assert!(names(&path).is_empty());
    assert_eq!(
        fs::read(path.with_file_name("store.partial").join("a")).unwrap(),
        b"mine"
    );
}

#[test]
fn replacing_keeps_the_old_until_the_new_is_complete() {
    let (_scratch, path) = scratch();
    PartialDir::open(&path)
        .unwrap()
        .finish(Manifest::new("store", 1))
        .unwrap();
    let partial = PartialDir::open_replacing(&path).unwrap();
    assert_eq!(Manifest::load(&path).unwrap().seed, 1);
    partial.finish(Manifest::new("store", 2)).unwrap();
    assert_eq!(Manifest::load(&path).unwrap().seed, 2);
    assert_eq!(names(path.parent().unwrap()), ["store"]);

    let data = path.with_file_name("data");
    fs::create_dir(&data).unwrap();
    assert!(matches!(
        PartialDir::open_replacing(&data),
        Err(ArtifactError::NotRemovable { .. })
    ));
}

#[test]
fn force_removes_nothing_but_artifacts() {
    let (scratch, path) = scratch();
    remove_existing(&path).unwrap();
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("thesis.tex"), b"years of work").unwrap();
    let error = remove_existing(&path).unwrap_err().to_string();
    assert!(
        error.contains("will not remove") && error.contains("holds no pullback.json"),
        "{error}"
    );
    fs::write(path.join(MANIFEST_FILE), b"{\"name\": \"something else\"}").unwrap();
    assert!(remove_existing(&path).is_err());
    let file = scratch.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(
        remove_existing(&file)
            .unwrap_err()
            .to_string()
            .contains("not a directory")
    );
    assert!(path.join("thesis.tex").exists() && file.exists());

    write_json(&path.join(MANIFEST_FILE), &Manifest::new("store", 0)).unwrap();
    #[cfg(unix)]
    {
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(
            remove_existing(&link)
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
    }
    remove_existing(&path).unwrap();
    assert!(names(path.parent().unwrap()).is_empty());
}

#[test]
fn names_that_cannot_be_outputs() {
    for path in ["", "..", "/", "a/.."] {
        let error = PartialDir::open(Path::new(path)).unwrap_err();
        assert!(
            matches!(error, ArtifactError::BadPath { .. }),
            "{path}: {error}"
        );
    }
}

#[test]
fn a_working_file_outside_is_not_removed() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    let outside = path.with_file_name("precious");
    fs::write(&outside, b"x").unwrap();
    assert!(
        partial
            .finish_skipping(Manifest::new("store", 0), &["../precious"])
            .is_err()
    );
    assert!(outside.exists());
}

#[test]
#[cfg(unix)]
fn links_do_not_belong_in_an_artifact() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", partial.path().join("link")).unwrap();
    let error = partial
        .finish(Manifest::new("store", 0))
        .unwrap_err()
        .to_string();
    assert!(error.contains("only files and directories"), "{error}");
    assert!(!path.exists());
}

#[test]
fn files_are_written_whole() {
    let (scratch, _) = scratch();
    let path = scratch.path().join("new/dirs/file.json");
    write_atomic(&path, b"old").unwrap();
    write_atomic(&path, b"new content").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new content");
    assert_eq!(names(path.parent().unwrap()), ["file.json"]);
    write_json(&path, &json!({"b": 1, "a": [0.1]})).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\n  \"b\": 1,\n  \"a\": [\n    0.1\n  ]\n}\n"
    );
    let error = write_atomic(scratch.path(), b"x").unwrap_err().to_string();
    assert!(
        error.contains("cannot write") && error.contains("it is a directory"),
        "{error}"
    );
    let below_a_file = path.join("x");
    assert!(write_atomic(&below_a_file, b"x").is_err());
}

#[cfg(unix)]
#[test]
fn written_files_have_ordinary_permissions_and_links_stay_links() {
    use std::os::unix::fs::PermissionsExt;
    let (scratch, _) = scratch();
    let path = scratch.path().join("file");
    write_atomic(&path, b"x").unwrap();
    let ordinary = scratch.path().join("ordinary");
    fs::write(&ordinary, b"x").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&ordinary));

    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write_atomic(&link, b"through").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), b"through");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said() {
    let error = write_atomic(Path::new("/dev/full"), b"x")
        .unwrap_err()
        .to_string();
    assert_eq!(error, "cannot write /dev/full: no space left on device");
    let error = write_json(Path::new("/dev/full"), &1)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "cannot write /dev/full: no space left on device");
}

#[test]
fn broken_json_is_located() {
    let (scratch, _) = scratch();
    let path = scratch.path().join("result.json");
    assert!(
        read_json::<Value>(&path)
            .unwrap_err()
            .to_string()
            .contains("no such file")
    );
    fs::write(&path, b"{\n  \"a\": 1,,\n}").unwrap();
    let error = read_json::<Value>(&path).unwrap_err().to_string();
    assert!(
        error.contains("result.json") && error.contains("line 2 column"),
        "{error}"
    );
    fs::write(&path, b"{\n  \"kind\": 3\n}").unwrap();
    let error = read_json::<Manifest>(&path).unwrap_err().to_string();
    assert!(
        error.contains("line 2 column 11") && error.contains("expected a string"),
        "{error}"
    );
    fs::write(&path, b"\xff\xfe").unwrap();
    assert!(read_json::<Value>(&path).is_err());
}

#[test]
fn what_is_not_an_artifact() {
    let (scratch, path) = scratch();
    let message = |path: &Path| Manifest::load(path).unwrap_err().to_string();
    assert!(message(&path).contains("is not a pullback artifact: there is no such directory"));
    fs::create_dir_all(&path).unwrap();
    assert!(message(&path).contains("it holds no pullback.json"));
    let file = scratch.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(message(&file).contains("it is a file"));
    fs::write(path.join(MANIFEST_FILE), b"{\"kind\": \"store\"}").unwrap();
    assert!(
        message(&path).contains("missing field `format`"),
        "{}",
        message(&path)
    );
    fs::write(
        path.join(MANIFEST_FILE),
        b"{\"format\": 99, \"kind\": {\"new\": true}}",
    )
    .unwrap();
    assert!(
        message(&path)
            .contains("has format 99, this program reads formats up to 1: use a newer pullback")
    );
    write_json(&path.join(MANIFEST_FILE), &Manifest::new("store", 0)).unwrap();
    Manifest::load_kind(&path, "store").unwrap();
    let error = Manifest::load_kind(&path, "sae").unwrap_err().to_string();
    assert!(
        error.ends_with("is a `store`, a `sae` is needed here"),
        "{error}"
    );
}

#[test]
fn damaged_files_are_found() {
    let (_scratch, path) = scratch();
    let partial = PartialDir::open(&path).unwrap();
    fs::write(partial.path().join("a"), b"aaaa").unwrap();
    let manifest = partial.finish(Manifest::new("store", 0)).unwrap();
    let control = Control::hidden();
    fs::write(path.join("a"), b"aaab").unwrap();
    manifest.verify_sizes(&path).unwrap();
    let error = manifest
        .verify_files(&path, &control)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("was altered") && error.contains(&sha256_bytes(b"aaab")),
        "{error}"
    );
    fs::write(path.join("a"), b"aa").unwrap();
    let error = manifest.verify_sizes(&path).unwrap_err().to_string();
    assert!(
        error.contains("has 2 bytes where 4 were recorded"),
        "{error}"
    );
    fs::remove_file(path.join("a")).unwrap();
    assert!(
        manifest
            .verify_files(&path, &control)
            .unwrap_err()
            .to_string()
            .contains("is missing")
    );

    let mut evil = manifest.clone();
    let entry = evil.files.remove("a").unwrap();
    evil.files.insert("../../secret".to_owned(), entry);
    assert!(matches!(
        evil.verify_sizes(&path),
        Err(ArtifactError::BadPath { .. })
    ));
    control.interrupt();
    fs::write(path.join("a"), b"aaaa").unwrap();
    assert!(
        manifest
            .verify_files(&path, &control)
            .unwrap_err()
            .is_interrupted()
    );
}

#[test]
fn the_digest_stands_for_the_content() {
    let (_scratch, path) = scratch();
    let floats: Vec<f64> = (1..500)
        .map(|i| 1.0 / f64::from(i).sqrt() * 10f64.powi(i % 40 - 20))
        .collect();
    let manifest = Manifest::new("sae", u64::MAX)
        .with_site("blocks.15.hook_resid_post")
        .with_model(model("smollm2", "m"))
        .with_parent(parent("store", "s", "/home/a/store"))
        .with_config(
            json!({"z": 1, "a": {"rate": 3e-4, "floats": floats, "f32": f64::from(0.1f32)}}),
        );
    let partial = PartialDir::open(&path).unwrap();
    fs::write(partial.path().join("w"), b"weights").unwrap();
    let written = partial.finish(manifest.clone()).unwrap();
    let digest = written.digest();
    assert_eq!(digest.len(), "sha256:".len() + 64);
    assert_eq!(
        Manifest::load(&path).unwrap().digest(),
        digest,
        "reading must not change it"
    );

    let mut moved = written.clone();
    moved.parents[0].path = "../elsewhere".to_owned();
    assert_eq!(moved.digest(), digest);
    let mut reordered = written.clone();
    let config = &written.config;
    reordered.config = json!({"a": {"f32": config["a"]["f32"], "floats": config["a"]["floats"], "rate": 3e-4}, "z": 1});
    assert_eq!(reordered.digest(), digest);
    for changed in [
        Manifest {
            seed: 1,
            ..written.clone()
        },
        Manifest {
            kind: "x".to_owned(),
            ..written.clone()
        },
        Manifest {
            site: None,
            ..written.clone()
        },
        Manifest {
            model: Some(model("smollm2", "other")),
            ..written.clone()
        },
        Manifest {
            parents: vec![],
            ..written.clone()
        },
        Manifest {
            config: json!({"z": 2}),
            ..written.clone()
        },
        manifest,
    ] {
        assert_ne!(changed.digest(), digest);
    }
}

#[test]
fn mismatches_say_what_was_made_for_what() {
    let adapter = Manifest::new("adapter", 0)
        .with_site("blocks.15.hook_resid_post")
        .with_model(model("smollm2-135m-instruct", "m"))
        .with_parent(parent("sae", "one", "runs/sae-1"));
    adapter.check_site("blocks.15.hook_resid_post").unwrap();
    adapter
        .check_model(&model("another name of the same", "m"))
        .unwrap();
    let sae = parent("sae", "one", "");
    adapter
        .check_parent("sae", &sae.digest, "moved/sae")
        .unwrap();
    assert_eq!(adapter.parent("sae").unwrap().path, "runs/sae-1");
    assert!(adapter.parent("store").is_none());

    let message = |result: Result<(), ArtifactError>| result.unwrap_err().to_string();
    assert_eq!(
        message(adapter.check_site("blocks.3.hook_resid_post")),
        "this `adapter` was made for the site blocks.15.hook_resid_post, not for blocks.3.hook_resid_post"
    );
    let text = message(adapter.check_model(&model("stories260K", "other")));
    assert!(
        text.starts_with("this `adapter` was made for the model smollm2-135m-instruct (sha256:"),
        "{text}"
    );
    assert!(text.contains("not for stories260K (sha256:"), "{text}");
    let text = message(adapter.check_parent("sae", &parent("sae", "two", "").digest, "runs/sae-2"));
    assert!(
        text.starts_with("this `adapter` was made for the `sae` runs/sae-1 (sha256:"),
        "{text}"
    );
    assert!(text.contains("not for runs/sae-2 (sha256:"), "{text}");
    let text = message(adapter.check_parent("store", "sha256:00", "runs/store"));
    assert!(
        text.contains("does not record the `store` it was made for"),
        "{text}"
    );
    let bare = Manifest::new("store", 0);
    assert!(message(bare.check_site("x")).contains("does not record the site"));
    assert!(message(bare.check_model(&model("m", "m"))).contains("does not record the model"));
}
