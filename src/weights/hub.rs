//! Finding a model: a folder, or `org/name` in the local Hugging Face cache. Nothing is ever downloaded.
//!
//! The cache keeps `models--org--name/refs/main`, which holds a commit, and `snapshots/<commit>/`, which links the
//! files. A snapshot can be partial, so the files that a model needs are looked for before one is taken.

use super::Error;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The folder of a model or adapter: `arg` itself if it is one, else the cached snapshot of `org/name`.
///
/// # Errors
/// [`Error::ModelNotFound`] with the places that were searched; [`Error::IncompleteModel`] if the newest snapshot
/// lacks files.
pub fn resolve_model(arg: &str) -> Result<PathBuf, Error> {
    resolve_in(arg, cache_folder(|name| std::env::var_os(name)).as_deref())
}

/// The cache as huggingface_hub finds it: the first of these variables that is set decides.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME");
    let expanded = |path: PathBuf| match (path.strip_prefix("~"), &home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    let direct = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
    let root = || {
        let caches = || set("XDG_CACHE_HOME").or_else(|| Some(home.clone()?.join(".cache")));
        set("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
    };
    direct.or_else(|| Some(root()?.join("hub"))).map(expanded)
}

fn resolve_in(arg: &str, cache: Option<&Path>) -> Result<PathBuf, Error> {
    let folder = Path::new(arg);
    if folder.is_dir() {
        return Ok(folder.into());
    }
    let mut looked = vec![folder.to_path_buf()];
    let is_hub_name = is_hub_name(arg);
    if let (true, Some(cache)) = (is_hub_name, cache) {
        let cached = cache.join(format!("models--{}", arg.replace('/', "--")));
        if cached.is_dir()
            && let Some(snapshot) = snapshot(arg, &cached)?
        {
            return Ok(snapshot);
        }
        looked.push(cached);
    }
    Err(Error::ModelNotFound { name: arg.into(), looked, is_hub_name })
}

/// `org/name` of the characters that the hub allows.
fn is_hub_name(arg: &str) -> bool {
    let part = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !part.is_empty() && !part.starts_with(['.', '-']) && part.bytes().all(allowed)
    };
    arg.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The snapshot of `refs/main` if it is complete, else the newest complete one; none if there are no snapshots.
fn snapshot(name: &str, cached: &Path) -> Result<Option<PathBuf>, Error> {
    let snapshots = cached.join("snapshots");
    let main = std::fs::read_to_string(cached.join("refs/main")).ok();
    let main = main.as_deref().map(str::trim).filter(|commit| commit.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let main = main.filter(|commit| !commit.is_empty()).map(|commit| snapshots.join(commit));
    if let Some(main) = main.as_ref().filter(|main| missing_file(main).is_none()) {
        return Ok(Some(main.clone()));
    }
    let Ok(listed) = std::fs::read_dir(&snapshots) else {
        return Ok(None);
    };
    let folders = listed.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let dated = folders.map(|path| (std::fs::metadata(&path).and_then(|status| status.modified()).ok(), path));
    let mut dated: Vec<_> = dated.collect();
    dated.sort();
    if let Some((_, newest)) = dated.iter().rev().find(|(_, path)| missing_file(path).is_none()) {
        return Ok(Some(newest.clone()));
    }
    let newest = main.filter(|main| main.is_dir()).or_else(|| dated.pop().map(|(_, path)| path));
    match newest {
        Some(folder) => {
            let missing = missing_file(&folder).unwrap_or_default();
            Err(Error::IncompleteModel { name: name.into(), folder, missing })
        }
        None => Ok(None),
    }
}

/// The first file that a model or adapter folder needs and lacks. Links whose target is gone count as missing.
fn missing_file(folder: &Path) -> Option<String> {
    let lacks = |name: &str| !folder.join(name).is_file();
    let first = |names: &[&str]| names.iter().find(|name| lacks(name)).map(|name| name.to_string());
    if !lacks("adapter_config.json") {
        return first(&["adapter_model.safetensors"]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return first(&["config.json", "model.safetensors"]);
    }
    let index: Option<serde_json::Value> =
        std::fs::read(&index).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let shards = index.as_ref().and_then(|index| index.get("weight_map")).and_then(|map| map.as_object());
    let Some(shards) = shards else {
        return Some("a readable model.safetensors.index.json".into());
    };
    let shards = shards.values().filter_map(|shard| shard.as_str());
    first(&["config.json"]).or_else(|| shards.into_iter().find(|shard| lacks(shard)).map(str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn cached(cache: &Path, commit: &str, files: &[&str]) -> PathBuf {
        let folder = cache.join("models--org--name/snapshots").join(commit);
        fs::create_dir_all(&folder).unwrap();
        for file in files {
            fs::write(folder.join(file), "{}").unwrap();
        }
        folder
    }

    fn set_main(cache: &Path, commit: &str) {
        fs::create_dir_all(cache.join("models--org--name/refs")).unwrap();
        fs::write(cache.join("models--org--name/refs/main"), commit).unwrap();
    }

    #[test]
    fn a_folder_comes_before_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let arg = folder.path().to_str().unwrap();
        assert_eq!(resolve_in(arg, None).unwrap(), folder.path());
    }

    #[test]
    fn main_is_taken_over_a_newer_snapshot_unless_it_is_partial() {
        let cache = tempfile::tempdir().unwrap();
        let main = cached(cache.path(), "aaa", &["config.json", "model.safetensors"]);
        let newer = cached(cache.path(), "bbb", &["config.json", "model.safetensors"]);
        set_main(cache.path(), "aaa\n");
        assert_eq!(resolve_in("org/name", Some(cache.path())).unwrap(), main);
        fs::remove_file(main.join("model.safetensors")).unwrap();
        assert_eq!(resolve_in("org/name", Some(cache.path())).unwrap(), newer);
        fs::remove_file(newer.join("config.json")).unwrap();
        match resolve_in("org/name", Some(cache.path())).unwrap_err() {
            Error::IncompleteModel { folder, missing, .. } => {
                assert_eq!((folder, missing.as_str()), (main, "model.safetensors"));
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_sharded_snapshot_needs_every_shard_and_an_adapter_its_own_files() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cached(cache.path(), "aaa", &["config.json", "a.safetensors"]);
        let index = r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let error = resolve_in("org/name", Some(cache.path())).unwrap_err();
        assert!(error.to_string().contains("b.safetensors"), "{error}");
        assert!(error.hint().unwrap().contains("hf download org/name"));
        fs::write(folder.join("b.safetensors"), "").unwrap();
        assert_eq!(resolve_in("org/name", Some(cache.path())).unwrap(), folder);

        let adapter = cached(cache.path(), "bbb", &["adapter_config.json", "adapter_model.safetensors"]);
        set_main(cache.path(), "bbb");
        assert_eq!(resolve_in("org/name", Some(cache.path())).unwrap(), adapter);
    }

    #[test]
    fn an_unknown_model_names_the_places_searched_and_how_to_get_it() {
        let cache = tempfile::tempdir().unwrap();
        let error = resolve_in("org/name", Some(cache.path())).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("org/name") && message.contains("models--org--name"), "{message}");
        assert!(error.hint().unwrap().contains("hf download org/name"));
        for arg in ["../up", "/no/such/folder", "a/b/c", "org/../x", "name", ""] {
            match resolve_in(arg, Some(cache.path())).unwrap_err() {
                Error::ModelNotFound { is_hub_name: false, looked, .. } => assert_eq!(looked.len(), 1, "{arg}"),
                other => panic!("{arg}: {other}"),
            }
        }
    }

    #[test]
    fn a_commit_that_leaves_the_cache_is_not_followed() {
        let cache = tempfile::tempdir().unwrap();
        let outside = cache.path().join("models--org--name/outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("config.json"), "").unwrap();
        fs::write(outside.join("model.safetensors"), "").unwrap();
        fs::create_dir_all(cache.path().join("models--org--name/snapshots")).unwrap();
        set_main(cache.path(), "../outside");
        assert!(matches!(resolve_in("org/name", Some(cache.path())), Err(Error::ModelNotFound { .. })));
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_looks() {
        let folder = |set: &[(&str, &str)]| {
            cache_folder(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/me");
        assert_eq!(folder(&[home]).unwrap(), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x")]).unwrap(), Path::new("/x/huggingface/hub"));
        assert_eq!(folder(&[home, ("HF_HOME", "~/hf")]).unwrap(), Path::new("/home/me/hf/hub"));
        assert_eq!(folder(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")]).unwrap(), Path::new("/hub"));
        assert_eq!(folder(&[home, ("HF_HUB_CACHE", "")]).unwrap(), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(folder(&[]), None);
    }
}
