//! Promises of both formats: power cuts, failing operations, damaged files.

use std::path::Path;

use rustix::io::Errno;

use super::fault::{Fault, Result};
use super::faulty::{Failure, Faulty};
use super::grid::{Grid, Triangle};
use super::npy::{self, NpySink};
use super::npy_read::NpyReader;
use super::power::{Dice, Power};
use super::sink::{Paths, Reader, Sink, sidecar};
use super::vfs::Vfs;
use super::zarr::ZarrSink;
use super::zarr_read::ZarrReader;

pub(super) const UNFINISHED: &[u8] = b"unfinished";
pub(super) const FINISHED: &[u8] = b"finished, and longer";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Npy,
    Zarr,
}

/// Ten units of at most 4 x 4 entries, with a ragged edge.
pub(super) fn grid(triangle: Triangle) -> Grid {
    Grid::new(&[14, 14], 4, 4, true, triangle).unwrap()
}

/// A symmetric matrix whose entries are all different in the lower half.
fn entry(row: usize, col: usize) -> f32 {
    let (row, col) = (row.max(col), row.min(col));
    (row * 100 + col) as f32
}

pub(super) fn tile(grid: &Grid, index: usize) -> Vec<u8> {
    let unit = grid.unit(index);
    let cols = unit.cols;
    unit.rows
        .flat_map(|row| cols.clone().map(move |col| (row, col)))
        .flat_map(|(row, col)| entry(row, col).to_le_bytes())
        .collect()
}

pub(super) fn begin<V: Vfs + Clone + 'static>(
    format: Format,
    vfs: &V,
    paths: &Paths,
    grid: Grid,
) -> Result<Box<dyn Sink>> {
    Ok(match format {
        Format::Npy => Box::new(NpySink::begin(vfs.clone(), paths.clone(), grid, UNFINISHED)?),
        Format::Zarr => Box::new(ZarrSink::begin(vfs.clone(), paths.clone(), grid, UNFINISHED)?),
    })
}

pub(super) fn reader<V: Vfs + Clone + 'static>(
    format: Format,
    vfs: &V,
    path: &Path,
    grid: Grid,
) -> Result<Box<dyn Reader>> {
    Ok(match format {
        Format::Npy => Box::new(NpyReader::open(vfs.clone(), path, &sidecar(path), grid)?),
        Format::Zarr => Box::new(ZarrReader::open(vfs.clone(), path, grid)?),
    })
}

/// What `assemble(out=path, resume=True)` does with a store.
pub(super) fn job<V: Vfs + Clone + 'static>(
    format: Format,
    vfs: &V,
    paths: &Paths,
    grid: Grid,
) -> Result<()> {
    let there = vfs.stat(&paths.target).map_err(|error| Fault::io("stat", &paths.target, error))?;
    if there.is_some() {
        return if format == Format::Npy { npy::tidy(vfs, paths) } else { Ok(()) };
    }
    let mut sink = begin(format, vfs, paths, grid)?;
    let missing: Vec<usize> = marks(&sink.done()?, false);
    for pair in missing.chunks(2) {
        for &index in pair {
            sink.write(index, &tile(&grid, index))?;
        }
        sink.commit()?;
    }
    sink.finish(FINISHED, false)
}

pub(super) fn marks(done: &[bool], wanted: bool) -> Vec<usize> {
    (0..done.len()).filter(|&index| done[index] == wanted).collect()
}

/// Every entry of a finished store, through its reader, with all checksums.
pub(super) fn expect_whole<V: Vfs + Clone + 'static>(
    format: Format,
    vfs: &V,
    paths: &Paths,
    grid: Grid,
) {
    let store = reader(format, vfs, &paths.target, grid).unwrap();
    assert!(store.done().unwrap().iter().all(|&done| done));
    for index in 0..grid.units() {
        store.check(index, true).unwrap();
        let unit = grid.unit(index);
        let mut got = vec![0; grid.unit_bytes(&unit)];
        store.block(0, index, unit.rows.clone(), unit.cols.clone(), &mut got).unwrap();
        if unit.i != unit.j || grid.mirrors() {
            assert_eq!(got, tile(&grid, index), "{format:?} tile {index}");
        }
    }
}

/// Cuts the power of a job at a random operation, again and again until it gets through.
fn survive(format: Format, triangle: Triangle, seed: u64, longest: u64) {
    let mut dice = Dice::new(seed);
    let grid = grid(triangle);
    let paths = Paths::new(Path::new("K"));
    let mut disk = Power::new(dice.below(longest as usize) as u64);
    let mut cuts = 0;
    while job(format, &disk, &paths, grid).is_err() {
        cuts += 1;
        let steps = if cuts < 4 { dice.below(longest as usize) as u64 } else { u64::MAX };
        disk = disk.reboot(&mut dice, u64::MAX);
        if disk.stat(&paths.partial).unwrap().is_some()
            && disk.stat(&sidecar(&paths.partial)).unwrap().is_some() | (format == Format::Zarr)
        {
            let mut sink = begin(format, &disk, &paths, grid).unwrap();
            let done = sink.done().unwrap();
            let store = reader(format, &disk, &paths.partial, grid).unwrap();
            for index in marks(&done, true) {
                store.check(index, true).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            }
        }
        disk = disk.reboot(&mut dice, steps);
    }
    // The last cut may come right after the job: it must still be there.
    let disk = disk.reboot(&mut dice, u64::MAX);
    job(format, &disk, &paths, grid).unwrap();
    expect_whole(format, &disk, &paths, grid);
}

fn operations(format: Format) -> u64 {
    let disk = Power::new(u64::MAX);
    job(format, &disk, &Paths::new(Path::new("K")), grid(Triangle::Full)).unwrap();
    disk.steps()
}

#[test]
fn ten_thousand_power_cuts_leave_no_wrong_tile() {
    for format in [Format::Npy, Format::Zarr] {
        let longest = operations(format) + 2;
        for seed in 0..5000 {
            let triangle = if seed % 3 == 0 { Triangle::Lower } else { Triangle::Full };
            survive(format, triangle, seed, longest);
        }
    }
}

#[test]
fn every_failing_operation_is_reported_or_harmless_and_can_be_resumed() {
    let failures = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::MFILE]
        .map(|errno| Failure::Errno(errno.raw_os_error()));
    for format in [Format::Npy, Format::Zarr] {
        for failure in failures.into_iter().chain([Failure::Short]) {
            for lasting in [false, true] {
                if lasting && failure == Failure::Short {
                    continue; // a disk that never transfers anything but halves has no end
                }
                fail_everywhere(format, failure, lasting);
            }
        }
    }
}

fn fail_everywhere(format: Format, failure: Failure, lasting: bool) {
    let paths = Paths::new(Path::new("K"));
    let grid = grid(Triangle::Full);
    for first in 0.. {
        let disk = Power::new(u64::MAX);
        let faulty = Faulty::failing(disk.clone(), first, lasting, failure);
        let result = job(format, &faulty, &paths, grid);
        let reached = faulty.count() > first;
        match (&result, failure) {
            (Err(fault), Failure::Short | Failure::Garbled) => {
                panic!("{format:?} operation {first}: {fault}")
            }
            (Err(fault), Failure::Errno(_)) => assert!(!fault.to_string().is_empty()),
            (Ok(()), _) => assert!(!lasting || !reached, "{format:?} operation {first} is silent"),
        }
        job(format, &disk, &paths, grid)
            .unwrap_or_else(|fault| panic!("{format:?} after operation {first}: {fault}"));
        expect_whole(format, &disk, &paths, grid);
        if !reached {
            return;
        }
    }
}

#[test]
fn a_tile_is_not_recorded_after_a_failed_sync() {
    let disk = Power::new(u64::MAX);
    let (paths, grid) = (Paths::new(Path::new("K")), grid(Triangle::Full));
    let mut sink = begin(Format::Npy, &disk, &paths, grid).unwrap();
    sink.write(0, &tile(&grid, 0)).unwrap();
    let before = disk.steps();
    drop(sink);
    // The same again with a disk whose next sync fails: opening costs `before` less one write.
    for first in 0..before + 4 {
        let failure = Failure::Errno(Errno::IO.raw_os_error());
        let faulty = Faulty::failing(disk.clone(), first, false, failure);
        let Ok(mut sink) = begin(Format::Npy, &faulty, &paths, grid) else { continue };
        if sink.write(1, &tile(&grid, 1)).is_err() {
            continue;
        }
        if let Err(Fault::Sync { .. }) = sink.commit() {
            let done = sink.done().unwrap();
            sink.commit().unwrap();
            assert_eq!(sink.done().unwrap(), done, "a second sync must not record the tile");
            sink.write(2, &tile(&grid, 2)).unwrap();
            assert!(matches!(sink.commit(), Err(Fault::Sync { .. })), "nor one after it");
            assert_eq!(sink.done().unwrap(), done);
            return;
        }
    }
    panic!("no sync failed");
}

#[test]
fn a_batch_is_what_was_written_before_it_was_taken() {
    for format in [Format::Npy, Format::Zarr] {
        let disk = Power::new(u64::MAX);
        let (paths, grid) = (Paths::new(Path::new("K")), grid(Triangle::Full));
        let mut sink = begin(format, &disk, &paths, grid).unwrap();
        sink.write(0, &tile(&grid, 0)).unwrap();
        let batch = sink.take();
        sink.write(1, &tile(&grid, 1)).unwrap();
        batch.commit().unwrap();
        let after = disk.reboot(&mut Dice::new(1), u64::MAX);
        let mut kept = begin(format, &after, &paths, grid).unwrap();
        assert!(kept.done().unwrap()[0], "{format:?}");
        sink.commit().unwrap();
        assert_eq!(marks(&sink.done().unwrap(), true), [0, 1]);
    }
}

#[test]
fn a_share_that_finishes_a_zarr_makes_the_chunks_of_the_others_safe() {
    let disk = Power::new(u64::MAX);
    let (paths, grid) = (Paths::new(Path::new("K")), grid(Triangle::Full));
    let mut shares = [0, 1].map(|_| begin(Format::Zarr, &disk, &paths, grid).unwrap());
    for index in 0..grid.units() {
        shares[index % 2].write(index, &tile(&grid, index)).unwrap();
    }
    let [mut late, mut last] = shares;
    last.finish(FINISHED, false).unwrap();
    for seed in 0..100 {
        let after = disk.reboot(&mut Dice::new(seed), u64::MAX);
        expect_whole(Format::Zarr, &after, &paths, grid);
    }
    late.commit().expect("its directories have another name now");
}
