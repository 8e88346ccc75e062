//! One engine a file: whichever path leads to it, and however it was opened.

#![cfg_attr(not(unix), allow(dead_code, unused_imports))] // links, inodes and permissions are Unix's

use std::path::{Component, Path, PathBuf};

use walpool::caller::Call;
use walpool::config::{Config, Synchronous};
use walpool::engine::Engine;
use walpool::error::{Kind, Result};

use crate::support::*;

fn open(path: &Path, change: impl FnOnce(&mut Config), given: &[&str]) -> Result<Engine> {
    let mut config = Config::default();
    change(&mut config);
    Engine::open(&Call::internal(), path, &config, given)
}

/// Both handles are on one engine: they count in the same statistics.
fn is_same(one: &Engine, other: &Engine) -> bool {
    one.stats(&Call::internal(), true).unwrap();
    write(other, "CREATE TABLE IF NOT EXISTS shared (a)").unwrap();
    figure(one, "jobs") == 1
}

/// The same file, from the folder in which this process runs.
fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap();
    let up = here.components().filter(|part| matches!(part, Component::Normal(_))).map(|_| Component::ParentDir);
    up.chain(path.components().filter(|part| *part != Component::RootDir)).collect()
}

#[cfg(unix)]
#[test]
fn every_path_to_a_file_leads_to_one_engine() {
    let db = Database::new();
    let link = db.folder.path().join("link.db");
    std::os::unix::fs::symlink(&db.path, &link).unwrap();
    let hard_link = db.folder.path().join("hard-link.db");
    std::fs::hard_link(&db.path, &hard_link).unwrap();
    let folder_link = db.folder.path().join("folder");
    std::os::unix::fs::symlink(db.folder.path(), &folder_link).unwrap();
    let dots = db.folder.path().join("folder/../").join(db.folder.path().file_name().unwrap()).join("test.db");
    for path in [link, hard_link, folder_link.join("test.db"), relative(&db.path), dots] {
        let other = open(&path, |_| (), &[]).unwrap();
        assert!(is_same(&db, &other), "{}", path.display());
    }
}

#[cfg(unix)]
#[test]
fn link_to_a_file_that_does_not_exist_yet_leads_to_its_engine() {
    let db = Database::new();
    let target = db.folder.path().join("target.db");
    let link = db.folder.path().join("link.db");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let by_link = open(&link, |_| (), &[]).unwrap();
    assert!(is_same(&by_link, &open(&target, |_| (), &[]).unwrap()));
}

#[test]
fn setting_that_was_given_and_differs_from_the_open_engine_is_refused() {
    let db = Database::with(|config| config.readers = 3);
    let error = open(&db.path, |config| config.readers = 5, &["readers"]).err().unwrap();
    assert_eq!(error.kind, Kind::Config);
    assert!(error.message.contains("readers=5") && error.message.contains("readers=3"), "{error}");
    let joined = open(&db.path, |config| config.synchronous = Synchronous::Full, &["readers"]);
    assert_eq!(joined.err().unwrap().kind, Kind::Config, "the default is a value like any other, once it is given");
    let joined = open(&db.path, |config| config.readers = 5, &["synchronous"]);
    assert_eq!(joined.err().unwrap().kind, Kind::Config);
    let joined = open(&db.path, |config| config.readers = 5, &[]).unwrap();
    assert_eq!(joined.config().readers, 3);
}

#[test]
fn memory_databases_are_private_and_gone_after_close() {
    let _limit = TimeLimit::start();
    let one = open(Path::new(":memory:"), |_| (), &[]).unwrap();
    let other = open(Path::new(":memory:"), |_| (), &[]).unwrap();
    write(&one, "CREATE TABLE item (id)").unwrap();
    assert_eq!(failure(fetch(&other, &Call::internal(), "SELECT * FROM item")).kind, Kind::Programming);
    assert_eq!(items(&one), []);
    let folders = [&one, &other].map(|engine| engine.path().parent().unwrap().to_owned());
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&folders[0].metadata().unwrap().permissions()) & 0o777, 0o700);
    one.close(&Call::internal()).unwrap();
    drop(other);
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
}

#[cfg(unix)]
#[test]
fn file_that_was_replaced_has_an_engine_of_its_own() {
    let db = Database::with_items(|_| ());
    for entry in db.folder.path().read_dir().unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let new = db.again();
    write(&new, "CREATE TABLE other (a)").unwrap();
    assert_eq!(failure(fetch(&new, &Call::internal(), "SELECT * FROM item")).kind, Kind::Programming);
    assert_eq!(new.path(), db.path);
}

#[cfg(unix)]
#[test]
fn files_have_the_permissions_that_were_asked_for() {
    let db = Database::with_items(|config| config.file_mode = 0o640);
    for entry in db.folder.path().read_dir().unwrap() {
        let entry = entry.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o640, "{:?}", entry.file_name());
    }
}

#[test]
fn path_that_cannot_be_opened_fails_at_once_and_names_the_file() {
    let db = Database::new();
    let no_database = db.folder.path().join("notes.txt");
    std::fs::write(&no_database, "This is a text, and longer than the header of a database is. ".repeat(20)).unwrap();
    for (path, kind) in [
        (db.folder.path().to_owned(), Kind::Storage),
        (db.folder.path().join("no/such/folder.db"), Kind::Storage),
        (no_database.clone(), Kind::Corrupt),
    ] {
        for _ in 0..2 {
            let error = open(&path, |_| (), &[]).err().unwrap();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(&*path.to_string_lossy()), "{error}");
        }
    }
    #[cfg(target_os = "linux")]
    assert!(descriptors(&no_database).is_empty());
}

#[test]
fn wrong_setting_is_refused_before_a_file_is_made() {
    let db = Database::new();
    let path = db.folder.path().join("new.db");
    assert_eq!(open(&path, |config| config.readers = 0, &[]).err().unwrap().kind, Kind::Config);
    assert!(!path.exists());
}
