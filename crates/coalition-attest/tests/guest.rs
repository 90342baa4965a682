//! The kernel's quote interface, against a directory that behaves like it, and where there is none.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::io;
use std::path::Path;

use coalition_attest::guest::EntryOps;
use coalition_attest::{ConfigfsTsm, GuestError, Measurements, QuoteSource};
use common::{collateral, judge, mrtd, policy, report_data, root};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Makes an entry whose attributes answer as the kernel's do: `outblob` and `generation` are pipes served by a thread
/// that quotes whatever is in `inblob` by the time `outblob` is opened.
fn create<const GENERATION_AFTER: u64>(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::write(path.join("provider"), "tdx_guest\n")?;
    std::fs::write(path.join("inblob"), "")?;
    for name in ["outblob", "generation"] {
        mkfifo(&path.join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    let path = path.to_owned();
    std::thread::spawn(move || -> io::Result<()> {
        std::fs::write(path.join("generation"), "0\n")?;
        let mut out = std::fs::OpenOptions::new().write(true).open(path.join("outblob"))?;
        let report_data: [u8; 64] = std::fs::read(path.join("inblob"))?.try_into().unwrap();
        let guest = root().guest(Measurements::of_mrtd(mrtd())).unwrap();
        let mut quote = guest.quote(&report_data).unwrap();
        quote.resize(8000, 0);
        io::Write::write_all(&mut out, &quote)?;
        drop(out);
        std::fs::write(path.join("generation"), format!("{GENERATION_AFTER}\n"))
    });
    Ok(())
}

/// An entry of another kind of guest.
fn create_sev(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::write(path.join("provider"), "sev_guest\n")
}

/// An entry without attributes.
fn create_bare(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)
}

fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(path)
}

fn entries(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

#[test]
fn a_quote_comes_through_the_interface() {
    let place = tempfile::tempdir().unwrap();
    let tsm = ConfigfsTsm::at(place.path()).with_ops(EntryOps { create: create::<1>, remove });
    assert!(tsm.is_present());
    for _ in 0..3 {
        let quote = tsm.quote(&report_data()).unwrap();
        assert_eq!(quote.len(), 8000, "as long as the interface pads it");
        let verdict = judge(policy(), &quote, &collateral());
        assert!(verdict.is_valid(), "{verdict}");
        assert_eq!(entries(place.path()), 0, "no entry is left behind");
    }
}

#[test]
fn somebody_elses_use_is_noticed() {
    let place = tempfile::tempdir().unwrap();
    let tsm = ConfigfsTsm::at(place.path()).with_ops(EntryOps { create: create::<2>, remove });
    let error = tsm.quote(&report_data()).unwrap_err();
    assert!(matches!(error, GuestError::Contended { expected: 1, found: 2 }), "{error}");
    assert_eq!(entries(place.path()), 0);
}

#[test]
fn other_guests_are_told_apart() {
    let place = tempfile::tempdir().unwrap();
    let tsm = ConfigfsTsm::at(place.path()).with_ops(EntryOps { create: create_sev, remove });
    let error = tsm.quote(&report_data()).unwrap_err();
    assert_eq!(error.to_string(), "this guest's quotes come from 'sev_guest', only 'tdx_guest' is supported");
    assert_eq!(entries(place.path()), 0);
}

#[test]
fn a_broken_interface_is_named() {
    let place = tempfile::tempdir().unwrap();
    let tsm = ConfigfsTsm::at(place.path()).with_ops(EntryOps { create: create_bare, remove });
    let error = tsm.quote(&report_data()).unwrap_err();
    assert!(error.to_string().contains("while reading") && error.to_string().contains("provider"), "{error}");
}

#[test]
fn without_the_interface_the_error_says_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let tsm = ConfigfsTsm::at(place.path().join("tsm/report"));
    assert!(!tsm.is_present());
    let text = tsm.quote(&report_data()).unwrap_err().to_string();
    assert!(text.contains("no TDX guest") && text.contains("mount -t configfs"), "{text}");
}
