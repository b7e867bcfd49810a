//! Promises of both formats on a real disk: what is left there, damaged files, links, locks, shares.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fault::Fault;
use super::grid::Triangle;
use super::lock::Lock;
use super::log::encode;
use super::npy;
use super::power::Power;
use super::sink::{Paths, sidecar};
use super::tests::{FINISHED, Format, begin, expect_whole, grid, job, marks, reader, tile};
use super::vfs::{Disk, Vfs};

/// A directory of this test, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("entk-store-{}-{id}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.0.join("K.npy"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_real_disk_holds_what_was_written() {
    for format in [Format::Npy, Format::Zarr] {
        for triangle in [Triangle::Full, Triangle::Lower] {
            let folder = Folder::new();
            job(format, &Disk, &folder.paths(), grid(triangle)).unwrap();
            expect_whole(format, &Disk, &folder.paths(), grid(triangle));
        }
    }
}

#[test]
fn nothing_but_the_store_is_left_on_the_real_disk() {
    for (format, want) in [(Format::Npy, &["K.npy", "K.npy.entk"][..]), (Format::Zarr, &["K.npy"])]
    {
        let folder = Folder::new();
        job(format, &Disk, &folder.paths(), grid(Triangle::Full)).unwrap();
        let mut names = Disk.list(&folder.0).unwrap();
        names.sort();
        assert_eq!(names, want);
    }
}

#[test]
fn what_killed_writers_left_in_the_store_is_swept() {
    for format in [Format::Npy, Format::Zarr] {
        let folder = Folder::new();
        let (paths, grid) = (folder.paths(), grid(Triangle::Full));
        begin(format, &Disk, &paths, grid).unwrap();
        let dir = match format {
            Format::Npy => sidecar(&paths.partial),
            Format::Zarr => paths.partial.clone(),
        };
        std::fs::write(dir.join("manifest.json.1.2.3.tmp"), "half").unwrap();
        job(format, &Disk, &paths, grid).unwrap();
        let dir = if format == Format::Npy { sidecar(&paths.target) } else { paths.target };
        assert!(Disk.list(&dir).unwrap().iter().all(|name| !name.ends_with(".tmp")));
    }
}

#[test]
fn a_changed_byte_is_found_in_every_tile() {
    for format in [Format::Npy, Format::Zarr] {
        let folder = Folder::new();
        let (paths, grid) = (folder.paths(), grid(Triangle::Full));
        job(format, &Disk, &paths, grid).unwrap();
        let file = match format {
            Format::Npy => paths.target.clone(),
            Format::Zarr => paths.target.join("kernel/c/1/2"),
        };
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() - 30;
        bytes[middle] ^= 4;
        std::fs::write(&file, bytes).unwrap();
        let store = reader(format, &Disk, &paths.target, grid).unwrap();
        let bad: Vec<usize> =
            (0..grid.units()).filter(|&index| store.check(index, true).is_err()).collect();
        assert_eq!(bad.len(), 1, "{format:?}");
    }
}

#[test]
fn a_missing_chunk_is_an_error_and_never_filled() {
    let folder = Folder::new();
    let (paths, grid) = (folder.paths(), grid(Triangle::Full));
    job(Format::Zarr, &Disk, &paths, grid).unwrap();
    std::fs::remove_file(paths.target.join("kernel/c/3/1")).unwrap();
    let store = reader(Format::Zarr, &Disk, &paths.target, grid).unwrap();
    assert_eq!(marks(&store.done().unwrap(), false).len(), 1);
    let missing = (0..grid.units()).find_map(|index| store.check(index, true).err()).unwrap();
    assert_eq!(missing.to_string(), "chunk c/3/1 is missing");
}

#[test]
fn links_in_a_store_are_refused() {
    let folder = Folder::new();
    let (paths, grid) = (folder.paths(), grid(Triangle::Full));
    job(Format::Zarr, &Disk, &paths, grid).unwrap();
    let row = paths.target.join("kernel/c/3");
    std::fs::rename(&row, folder.0.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(folder.0.join("elsewhere"), &row).unwrap();
    let store = reader(Format::Zarr, &Disk, &paths.target, grid).unwrap();
    assert!(matches!(store.check(6, true), Err(Fault::UnsafePath(_))));
}

#[test]
fn a_tile_recorded_twice_counts_only_if_its_bytes_match_the_last_record() {
    let (paths, grid) = (Paths::new(Path::new("K")), grid(Triangle::Full));
    for (last, sound) in [(crc32c::crc32c(&tile(&grid, 0)), true), (1, false)] {
        let disk = Power::new(u64::MAX);
        let mut sink = begin(Format::Npy, &disk, &paths, grid).unwrap();
        sink.write(0, &tile(&grid, 0)).unwrap();
        sink.commit().unwrap();
        let path = sidecar(&paths.partial).join(npy::LOG);
        let log = disk.open(&path, super::vfs::How::Edit).unwrap();
        disk.pwrite(&log, &encode(0, 2, 1), 32).unwrap();
        disk.pwrite(&log, &encode(0, last, 2), 64).unwrap();
        assert_eq!(begin(Format::Npy, &disk, &paths, grid).is_ok(), sound);
    }
}

#[test]
fn the_second_writer_is_told_who_the_first_is() {
    let folder = Folder::new();
    let paths = folder.paths();
    let take = |shared| Lock::take(&Disk, &paths.lock, &paths.target, shared);
    let alone = take(false).unwrap();
    for shared in [false, true] {
        let text = take(shared).unwrap_err().to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    }
    alone.release(&Disk);
    let first = take(true).unwrap();
    let second = take(true).unwrap();
    assert!(take(false).is_err());
    first.release(&Disk);
    assert!(paths.lock.exists(), "a share still holds it");
    second.release(&Disk);
    assert!(!paths.lock.exists());
}

#[test]
fn two_shares_fill_one_store() {
    for format in [Format::Npy, Format::Zarr] {
        let folder = Folder::new();
        let (paths, grid) = (folder.paths(), grid(Triangle::Full));
        let mut shares: Vec<_> =
            (0..2).map(|_| begin(format, &Disk, &paths, grid).unwrap()).collect();
        for index in 0..grid.units() {
            let share = &mut shares[index % 2];
            share.write(index, &tile(&grid, index)).unwrap();
            share.commit().unwrap();
        }
        for share in &mut shares {
            share.finish(FINISHED, false).unwrap();
        }
        expect_whole(format, &Disk, &paths, grid);
    }
}
