//! Ctrl-C: the first asks the work to stop, the second ends the program.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pullback_artifact::Control;
use rustix::process::{Pid, Signal, kill_process};

/// Tells a copy of this test program that it is the one to be interrupted.
const ROLE: &str = "PULLBACK_TEST_ROLE";

/// Not a test by itself: what the copies run.
#[test]
fn the_interrupted_one() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let control = if role == "hidden" {
        Control::hidden()
    } else {
        Control::terminal()
    };
    control.handle_ctrl_c().unwrap();
    control.handle_ctrl_c().unwrap();
    assert!(
        Control::hidden().handle_ctrl_c().is_err(),
        "only one control can have the handler"
    );
    println!("\nready");
    let deadline = Instant::now() + Duration::from_secs(30);
    while control.check().is_ok() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("\nstopping");
    if role == "stubborn" {
        std::thread::sleep(Duration::from_secs(30));
    }
}

fn start(role: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_interrupted_one", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn wait_for(output: &mut BufReader<ChildStdout>, word: &str) {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        if line.trim() == word {
            return;
        }
        line.clear();
    }
    panic!("the copy ended without saying `{word}`");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn the_first_signal_lets_the_work_stop() {
    for (role, which) in [
        ("lines", Signal::INT),
        ("hidden", Signal::INT),
        ("lines", Signal::TERM),
    ] {
        let (child, mut output) = start(role);
        wait_for(&mut output, "ready");
        signal(&child, which);
        wait_for(&mut output, "stopping");
        let (code, said) = end(child);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(
            said.matches("stopping at the next safe point").count(),
            1,
            "{said}"
        );
    }
}

#[test]
fn the_second_signal_ends_the_program() {
    let (child, mut output) = start("stubborn");
    wait_for(&mut output, "ready");
    signal(&child, Signal::INT);
    wait_for(&mut output, "stopping");
    let started = Instant::now();
    signal(&child, Signal::INT);
    let (code, _) = end(child);
    assert_eq!(code, Some(130));
    assert!(started.elapsed() < Duration::from_secs(10));
}
