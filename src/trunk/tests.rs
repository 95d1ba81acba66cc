use super::*;
use crate::batch::{PackOptions, TokenGroup};
use std::path::Path;

const WIDTH: usize = 4;

fn identity() -> TrunkIdentity {
    TrunkIdentity { model: "m".into(), embed_scale: "exact".into(), unit: "cpu f32".into() }
}

fn cache(folder: &Path, memory: u64, disk: u64) -> TrunkCache {
    TrunkCache::new(identity(), &TrunkBudget { memory, disk, folder: folder.into() }).unwrap()
}

fn batch(groups: &[(&[u32], &[&[u32]])]) -> PackedBatch {
    let groups: Vec<TokenGroup> = groups
        .iter()
        .map(|(prefix, suffixes)| TokenGroup {
            prefix: prefix.to_vec(),
            suffixes: suffixes.iter().map(|suffix| suffix.to_vec()).collect(),
        })
        .collect();
    let options = PackOptions {
        sliding_window: 8,
        image_token: None,
        vocab_size: 100,
        max_positions: 100,
        share: true,
        first_ordinal: 0,
    };
    PackedBatch::pack(&groups, &options).unwrap()
}

/// Values that are told apart by `tag` and place.
fn values(rows: usize, tag: f32) -> Vec<f32> {
    (0..rows * WIDTH).map(|i| tag + i as f32).collect()
}

#[test]
fn keys_tell_tokens_layers_layout_and_identity_apart() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20, 0);
    let key = |prefix: &[u32], suffixes: &[&[u32]], layer| cache.keys(&batch(&[(prefix, suffixes)]), layer)[0].clone();
    let one = key(&[1, 2], &[&[3], &[4]], 5);
    assert_eq!(one.1, 4);
    assert_eq!(one, key(&[1, 2], &[&[3], &[4]], 5));
    for other in [
        key(&[1, 2], &[&[3], &[5]], 5),
        key(&[1, 2], &[&[3], &[4]], 6),
        key(&[1], &[&[2, 3], &[4]], 5),
        key(&[1, 2], &[&[3, 4]], 5),
    ] {
        assert_ne!(one.0, other.0);
    }
    for changed in [
        TrunkIdentity { model: "n".into(), ..identity() },
        TrunkIdentity { embed_scale: "bf16".into(), ..identity() },
        TrunkIdentity { unit: "cpu bf16".into(), ..identity() },
    ] {
        let budget = TrunkBudget { memory: 0, disk: 0, folder: folder.path().into() };
        let other = TrunkCache::new(changed, &budget).unwrap();
        assert_ne!(one, other.keys(&batch(&[(&[1, 2], &[&[3], &[4]])]), 5)[0]);
    }
    // A group's key is its own, whatever it is packed with.
    let together = batch(&[(&[9], &[&[8]]), (&[1, 2], &[&[3], &[4]])]);
    assert_eq!(cache.keys(&together, 5)[1], one);
}

#[test]
fn what_was_put_is_found_in_memory_then_on_disk_by_a_later_process() {
    let folder = tempfile::tempdir().unwrap();
    let packed = batch(&[(&[1, 2], &[&[3], &[4]]), (&[5], &[&[6]])]);
    let stored = values(packed.rows(), 0.5);
    let first = cache(folder.path(), 1 << 20, 1 << 20);
    let keys = first.keys(&packed, 3);
    assert_eq!(first.get(&keys, WIDTH), None);
    first.put(&keys, WIDTH, &stored);
    assert_eq!(first.get(&keys, WIDTH).as_ref(), Some(&stored));
    assert_eq!(first.counts(), TrunkCounts { memory: 2, disk: 0, computed: 2 });
    let later = cache(folder.path(), 1 << 20, 1 << 20);
    assert_eq!(later.get(&keys, WIDTH).as_ref(), Some(&stored));
    assert_eq!(later.get(&keys, WIDTH).as_ref(), Some(&stored));
    assert_eq!(later.counts(), TrunkCounts { memory: 2, disk: 2, computed: 0 });
}

#[test]
fn a_damaged_file_is_removed_and_counts_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let packed = batch(&[(&[1, 2], &[&[3]])]);
    let first = cache(folder.path(), 0, 1 << 20);
    let keys = first.keys(&packed, 3);
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| *bytes.last_mut().unwrap() ^= 1, |bytes| bytes.truncate(40), |bytes| bytes.clear()];
    for damage in damages {
        first.put(&keys, WIDTH, &values(packed.rows(), 1.0));
        let path = folder.path().join(&keys[0].0).with_extension("safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(first.get(&keys, WIDTH), None);
        assert!(!path.exists());
    }
    // Another shape under the same name is no entry either.
    first.put(&keys, WIDTH, &values(packed.rows(), 1.0));
    assert_eq!(first.get(&keys, WIDTH / 2), None);
}

fn bytes_in(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn neither_place_exceeds_its_budget_and_older_files_make_room_for_this_process() {
    let folder = tempfile::tempdir().unwrap();
    let groups: Vec<PackedBatch> = (0..6).map(|id| batch(&[(&[id; 40], &[&[id]])])).collect();
    let size = (41 * WIDTH * size_of::<f32>()) as u64;
    // Two files, and a third with the kilobyte that is asked for its header; a fourth finds no room.
    let disk = 2 * (size + 300) + size + 1024;
    let put = |cache: &TrunkCache, index: usize| {
        let keys = cache.keys(&groups[index], 1);
        cache.put(&keys, WIDTH, &values(41, index as f32));
        folder.path().join(&keys[0].0).with_extension("safetensors").exists()
    };
    let first = cache(folder.path(), 2 * size, disk);
    let kept: Vec<bool> = (0..6).map(|index| put(&first, index)).collect();
    assert_eq!(kept, [true, true, true, false, false, false], "what was there first stays");
    assert!(bytes_in(folder.path()) <= disk);
    for (index, packed) in groups.iter().enumerate() {
        assert_eq!(first.get(&first.keys(packed, 1), WIDTH).is_some(), index < 3, "{index}");
    }
    assert_eq!(first.counts(), TrunkCounts { memory: 2, disk: 1, computed: 3 });

    // File times have the clock's grain; what this process stores must be younger than what it found.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let second = cache(folder.path(), 0, disk);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(second.get(&second.keys(&groups[0], 1), WIDTH).is_some(), "used by this process: kept");
    let kept: Vec<bool> = (3..6).map(|index| put(&second, index)).collect();
    assert_eq!(kept, [true, true, false]);
    assert!(second.get(&second.keys(&groups[0], 1), WIDTH).is_some());
    assert!(bytes_in(folder.path()) <= disk);
}

#[test]
fn what_a_killed_process_left_is_removed_and_what_is_being_written_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, age: u64| {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    };
    file(".a.safetensors.x1.tmp", 7200);
    file(".b.safetensors.x2.tmp", 5);
    file("c.safetensors", 7200);
    file("notes.txt", 7200);
    cache(folder.path(), 0, 1 << 20);
    let mut left: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".b.safetensors.x2.tmp", "c.safetensors", "notes.txt"]);
}

#[test]
fn files_of_another_process_count_once_they_are_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let groups: Vec<PackedBatch> = (0..99).map(|id| batch(&[(&[id; 3], &[&[id]])])).collect();
    let cache = cache(folder.path(), 0, 100_000);
    let put = |index: usize| {
        let keys = cache.keys(&groups[index], 1);
        cache.put(&keys, WIDTH, &values(4, 0.0));
        folder.path().join(&keys[0].0).with_extension("safetensors").exists()
    };
    assert!((0..10).all(put));
    std::fs::write(folder.path().join("other.safetensors"), vec![0; 100_000]).unwrap();
    let stored = (10..99).filter(|&index| put(index)).count();
    assert_eq!(stored, 64 - 10, "until it looks again, which every 64th entry makes it");
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let budget = TrunkBudget { memory: 0, disk: 1, folder: file.join("below") };
    let error = TrunkCache::new(identity(), &budget).err().unwrap().to_string();
    assert!(error.contains("below"), "{error}");
}
