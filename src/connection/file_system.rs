//! On which file system a database lies, and whether WAL can be trusted there. Touches nothing of the database itself.
//!
//! WAL needs memory that all processes on the file share, which those on two machines never do: each then overwrites what
//! the other committed, and SQLite cannot notice. <https://www.sqlite.org/wal.html#concurrency>

use std::ffi::OsString;
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// Names under which Linux mounts what other machines, or a virtual machine's host, may change at the same time. Not 9p:
/// under gVisor that is the root file system, and of this machine alone.
const SHARED: &[&str] = &[
    "afs", "beegfs", "ceph", "cifs", "coda", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "prl_fs",
    "pvfs2", "smb3", "smbfs", "vboxsf", "vmhgfs",
];

/// Names of those that live on this machine alone. What is in neither list is doubtful, FUSE among it: behind it is a
/// program, which may do anything.
const LOCAL: &[&str] = &[
    "aufs", "bcachefs", "btrfs", "ecryptfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus", "jfs",
    "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "tmpfs", "ubifs", "udf", "ufs",
    "vfat", "xfs", "zfs",
];

/// Refuse a file on a file system where WAL would lose data, and return a warning about one that nobody can vouch for.
///
/// # Errors
/// `NotSupported`, which names the file system.
pub fn check(path: &Path) -> Result<Option<String>> {
    // Where there is no such list, as outside Linux, nothing is known and nothing is said.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    name_of(&mounts, path).map_or(Ok(None), judge)
}

fn judge(name: &str) -> Result<Option<String>> {
    if SHARED.contains(&name) {
        let text = format!(
            "the file lies on {name}, which other machines may change at the same time: they share no memory, so WAL would lose \
             data; put the file on a local disk"
        );
        return Err(Error::new(Kind::NotSupported, text));
    }
    if LOCAL.contains(&name) {
        return Ok(None);
    }
    Ok(Some(format!(
        "the file lies on {name}, a file system that is not known to keep locks and shared memory as WAL needs them; no other \
         machine may use the file, and a local disk is safer"
    )))
}

/// The name of the file system that a real path lies on: that of the innermost mount, and of the last where several lie
/// upon each other. <https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts>
fn name_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mut innermost = (0, None);
    for line in mounts.lines() {
        let Some((mount, rest)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let name = rest.split(' ').next();
        if path.starts_with(unescape(point)) && point.len() >= innermost.0 {
            innermost = (point.len(), name);
        }
    }
    innermost.1
}

/// Spaces and the like stand there as a backslash and three octal digits.
fn unescape(point: &str) -> OsString {
    let mut plain = point.to_owned();
    for (code, char) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, char);
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        30 22 0:26 / /home rw shared:7 master:1 - nfs4 server:/home rw,vers=4.2\n\
        31 30 0:27 / /home/me rw - fuse.sshfs me@host: rw\n\
        32 22 0:28 / /a\\040b rw - 9p host rw\n\
        33 22 0:29 / /twice rw - cifs //server/share rw\n\
        34 22 0:30 / /twice rw - tmpfs tmpfs rw\n\
        35 22 254:0 /x.db /data/x.db rw - lustre x rw\n";

    #[test]
    fn a_file_lies_on_the_innermost_mount_and_the_last() {
        for (path, name) in [
            ("/x.db", "ext4"),
            ("/homes/x.db", "ext4"),
            ("/home/x.db", "nfs4"),
            ("/home/me/deep/x.db", "fuse.sshfs"),
            ("/a b/x.db", "9p"),
            ("/twice/x.db", "tmpfs"),
            ("/data/x.db", "lustre"),
        ] {
            assert_eq!(name_of(MOUNTS, Path::new(path)), Some(name), "{path}");
        }
        assert_eq!(name_of("", Path::new("/x.db")), None);
    }

    #[test]
    fn network_file_systems_are_refused_by_name_and_unknown_ones_warned_about() {
        for name in SHARED {
            let error = judge(name).unwrap_err();
            assert_eq!(error.kind, Kind::NotSupported);
            assert!(error.message.contains(&format!("lies on {name},")), "{error}");
        }
        for name in LOCAL {
            assert_eq!(judge(name), Ok(None));
        }
        for name in ["fuse", "fuse.sshfs", "virtiofs", "one that comes next year"] {
            assert!(judge(name).unwrap().unwrap().contains(&format!("lies on {name},")));
        }
    }
}
