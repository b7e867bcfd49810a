//! Promises about reading: what a disk that lies once, or always, can do to a reader.

use std::path::Path;

use super::faulty::{Failure, Faulty};
use super::grid::{Grid, Triangle};
use super::npy::NpySink;
use super::npy_read::NpyReader;
use super::power::Power;
use super::sink::{Paths, Reader, Sink, sidecar};
use super::vfs::Vfs;
use super::zarr::ZarrSink;
use super::zarr_read::ZarrReader;

/// Six units of at most 4 x 4 entries, with a ragged edge.
fn grid() -> Grid {
    Grid::new(&[10, 10], 4, 4, true, Triangle::Full).unwrap()
}

fn store(zarr: bool) -> (Power, Paths) {
    let (disk, paths, grid) = (Power::new(u64::MAX), Paths::new(Path::new("K")), grid());
    let mut sink: Box<dyn Sink> = if zarr {
        Box::new(ZarrSink::begin(disk.clone(), paths.clone(), grid, b"unfinished").unwrap())
    } else {
        Box::new(NpySink::begin(disk.clone(), paths.clone(), grid, b"unfinished").unwrap())
    };
    for index in 0..grid.units() {
        let bytes = vec![index as u8 + 1; grid.unit_bytes(&grid.unit(index))];
        sink.write(index, &bytes).unwrap();
    }
    sink.finish(b"finished", false).unwrap();
    (disk, paths)
}

fn reader<V: Vfs + 'static>(zarr: bool, vfs: V, paths: &Paths) -> Box<dyn Reader> {
    let (path, grid) = (&paths.target, grid());
    if zarr {
        Box::new(ZarrReader::open(vfs, path, grid).unwrap())
    } else {
        Box::new(NpyReader::open(vfs, path, &sidecar(path), grid).unwrap())
    }
}

/// Operations that opening a store takes.
fn opening(zarr: bool, disk: &Power, paths: &Paths) -> u64 {
    let counting = Faulty::counting(disk.clone());
    drop(reader(zarr, counting.clone(), paths));
    counting.count()
}

#[test]
fn row_74_bytes_that_are_wrong_once_are_read_again() {
    for zarr in [false, true] {
        let (disk, paths) = store(zarr);
        let opened = opening(zarr, &disk, &paths);
        for first in opened.. {
            let faulty = Faulty::failing(disk.clone(), first, false, Failure::Garbled);
            let store = reader(zarr, faulty.clone(), &paths);
            for index in 0..grid().units() {
                store.check(index, true).unwrap();
            }
            if faulty.count() <= first {
                assert!(first > opened + 20, "no read was garbled");
                break;
            }
        }
    }
}

#[test]
fn row_74_bytes_that_stay_wrong_are_a_changed_tile() {
    for zarr in [false, true] {
        let (disk, paths) = store(zarr);
        let opened = opening(zarr, &disk, &paths);
        let faulty = Faulty::failing(disk, opened, true, Failure::Garbled);
        let store = reader(zarr, faulty, &paths);
        let text = store.check(2, true).unwrap_err().to_string();
        assert!(text.starts_with("tile (1, 1): crc32c 0x"), "{text}");
        assert!(text.ends_with("run entk.repair(path) to recompute it"), "{text}");
    }
}
