//! Hostile safetensors files: none makes the reader panic, and none is accepted whose tensors do not tile the file.

use super::*;
use crate::weights::{Dtype, header::HEADER_LIMIT, write_safetensors};
use proptest::prelude::*;

/// A file of a header as given (unpadded) and `data` bytes.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|index| index as u8));
    bytes
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let outcome = SafetensorsFile::open(&path);
    if let Err(error) = &outcome {
        assert!(error.to_string().contains("hostile.safetensors"), "names the file: {error}");
    }
    outcome
}

fn error(header: &str, data: usize) -> Error {
    match open(&raw(header, data)) {
        Err(error) => error,
        Ok(_) => panic!("accepted: {header}"),
    }
}

/// The error must be of the variant and name the tensor.
macro_rules! refused {
    ($header:expr, $data:expr, $tensor:expr, $variant:pat) => {{
        let error = error($header, $data);
        assert!(matches!(error, $variant), "{error:?}");
        assert!(error.to_string().contains($tensor), "names the tensor: {error}");
    }};
}

#[test]
fn a_valid_file_gives_views_at_any_alignment() {
    for padding in 0..9 {
        let header = format!(
            r#"{{"b":{{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]}},"a":{{"dtype":"BF16","shape":[],"data_offsets":[0,2]}},"z":{{"dtype":"I64","shape":[3,0],"data_offsets":[10,10]}},"__metadata__":{{"format":"pt"}}}}{}"#,
            " ".repeat(padding)
        );
        let mut bytes = raw(&header, 0);
        bytes.extend_from_slice(&half::bf16::from_f32(-1.5).to_le_bytes());
        bytes.extend_from_slice(&3.25_f32.to_le_bytes());
        bytes.extend_from_slice(&(-7.0_f32).to_le_bytes());
        let file = open(&bytes).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "z"]);
        assert_eq!(file.metadata()["format"], "pt");
        let (a, b, z) = (file.tensor("a").unwrap(), file.tensor("b").unwrap(), file.tensor("z").unwrap());
        drop(file);
        assert_eq!((a.dtype, a.shape.len(), a.elements(), a.to_f32()), (Dtype::Bf16, 0, 1, vec![-1.5]));
        assert_eq!((b.shape.as_slice(), b.to_f32()), (&[2, 1][..], vec![3.25, -7.0]));
        assert_eq!((z.elements(), z.bytes().len()), (0, 0));
    }
}

#[test]
fn every_broken_header_is_refused_with_its_own_error() {
    assert!(matches!(open(b""), Err(Error::TooShort { length: 0, .. })));
    assert!(matches!(open(b"1234567"), Err(Error::TooShort { length: 7, .. })));
    let mut long = (HEADER_LIMIT + 1).to_le_bytes().to_vec();
    long.push(b'{');
    assert!(matches!(open(&long), Err(Error::HeaderTooLong { limit: HEADER_LIMIT, .. })));
    assert!(matches!(open(&u64::MAX.to_le_bytes()), Err(Error::HeaderTooLong { .. })));
    assert!(matches!(open(&[100, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']), Err(Error::HeaderOutsideFile { length: 10, .. })));
    assert!(matches!(error("", 0), Error::HeaderStart { .. }));
    assert!(matches!(error(" {}", 0), Error::HeaderStart { .. }));
    let mut latin = raw("{\"a\u{80}\"", 0);
    let end = latin.len() - 2;
    latin[end] = 0xff;
    assert!(matches!(open(&latin), Err(Error::HeaderEncoding { .. })));
    for text in ["{\"a\":[\"U8\",[0],[0,0]]}", "{", "{}x", "{\"a\":1}", "{\"__metadata__\":{\"n\":1}}", "{\"a\":{}}"] {
        assert!(matches!(error(text, 0), Error::HeaderEntry { .. }), "{text}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    refused!(&deep, 0, "`a`", Error::HeaderEntry { .. });

    let entry = |fields: &str| format!("{{\"w.q\":{{{fields}}}}}");
    for fields in [
        r#""dtype":"F32","shape":[1]"#,
        r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#,
        r#""dtype":"F32","shape":[1.0],"data_offsets":[0,4]"#,
        r#""dtype":"F32","shape":[1],"data_offsets":[0,4,8]"#,
        r#""dtype":"F32","shape":[1],"data_offsets":[0]"#,
        r#""dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]"#,
        r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1"#,
        r#""dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]"#,
    ] {
        refused!(&entry(fields), 4, "w.q", Error::HeaderEntry { .. });
    }
    refused!(&entry(r#""dtype":"F31","shape":[1],"data_offsets":[0,4]"#), 4, "w.q", Error::UnknownDtype { .. });
    for fields in [
        r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#,
        r#""dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]"#,
        r#""dtype":"F32","shape":[4294967296,0,4294967296],"data_offsets":[0,0]"#,
        r#""dtype":"F4","shape":[3],"data_offsets":[0,1]"#,
    ] {
        refused!(&entry(fields), 1, "w.q", Error::SizeOverflow { .. });
    }
    for offsets in ["[0,8]", "[4,0]", "[0,0]", "[18446744073709551615,3]", "[18446744073709551612,0]"] {
        let header = entry(&format!(r#""dtype":"F32","shape":[1],"data_offsets":{offsets}"#));
        refused!(&header, 4, "w.q", Error::SizeMismatch { expected: 4, .. });
    }
    refused!(&entry(r#""dtype":"U8","shape":[4],"data_offsets":[2,6]"#), 6, "w.q", Error::Hole { found: 2, .. });
    refused!(&entry(r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#), 3, "w.q", Error::TruncatedData { .. });
    assert!(matches!(error(&entry(r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#), 5), Error::Tail { .. }));
    assert!(matches!(error("{}", 1), Error::Tail { .. }));

    let two = |first: &str, second: &str| {
        let entry = |length: &str| {
            let (begin, end) = length.split_once(',').unwrap();
            let size = end.parse::<i64>().unwrap() - begin.parse::<i64>().unwrap();
            format!(r#"{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
        };
        format!(r#"{{"one":{},"two":{}}}"#, entry(first), entry(second))
    };
    refused!(&two("0,4", "5,6"), 6, "two", Error::Hole { expected: 4, found: 5, .. });
    refused!(&two("0,4", "3,6"), 6, "two", Error::Overlap { expected: 4, found: 3, .. });
    refused!(&two("0,4", "0,4"), 4, "two", Error::Overlap { .. });
    refused!(&two("0,4", "2,2"), 4, "two", Error::Overlap { .. });
    refused!(&two("4,6", "0,4"), 5, "one", Error::TruncatedData { expected: 123, found: 122, .. });

    let twice = r#"{"one":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"one":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    refused!(twice, 2, "one", Error::DuplicateKey { .. });
    refused!(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, "k", Error::DuplicateKey { .. });
    refused!(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "__metadata__", Error::DuplicateKey { .. });
}

#[test]
fn a_known_dtype_that_is_not_computed_with_is_refused_on_access_only() {
    let file = open(&raw(r#"{"w":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}"#, 3)).unwrap();
    let error = file.tensor("w").unwrap_err();
    assert!(
        matches!(&error, Error::WrongDtype { tensor, found, .. } if tensor == "w" && found == "F8_E4M3"),
        "{error}"
    );
}

#[test]
fn a_missing_tensor_is_named_with_the_nearest() {
    let file = open(&raw(r#"{"model.norm.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, 0)).unwrap();
    let error = file.tensor("model.norm.weigth").unwrap_err();
    assert!(error.to_string().contains("model.norm.weigth"));
    assert!(error.hint().unwrap().contains("`model.norm.weight`"));
}

#[test]
fn folders_and_absent_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(SafetensorsFile::open(folder.path()), Err(Error::NotAFile { .. })));
    assert!(matches!(SafetensorsFile::open(folder.path().join("x")), Err(Error::Io { action: "open", .. })));
}

#[test]
fn a_file_that_shrinks_while_mapped_gives_an_error_not_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shrinks.safetensors");
    write_safetensors(&path, &[("w", Dtype::U8, &[9000], &[1; 9000])]).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert!(file.tensor("w").is_ok());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(matches!(file.tensor("w"), Err(Error::Changed { found: 100, .. })));
}

#[test]
fn views_of_memory_are_checked_like_views_of_files() {
    let view = TensorView::from_bytes("w", Dtype::Bf16, &[1, 2], &[0x80, 0x3f, 0, 0xc0]).unwrap();
    assert_eq!(view.to_f32(), [1.0, -2.0]);
    assert_eq!(TensorView::from_bytes("w", Dtype::F32, &[0], &[]).unwrap().bytes(), b"");
    for shape in [&[2_usize][..], &[usize::MAX, 2], &[]] {
        let outcome = TensorView::from_bytes("w", Dtype::F32, shape, &[0; 5]);
        assert!(matches!(outcome, Err(Error::SizeMismatch { .. })), "{shape:?}");
    }
}

/// A header of tensors with these dtypes, shapes and offsets.
fn header(tensors: &[(&str, Vec<u64>, u64, u64)]) -> String {
    let entries = tensors.iter().enumerate().map(|(index, (dtype, shape, begin, end))| {
        format!(r#""t{index}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    });
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

const DTYPES: [(&str, u64); 6] = [("U8", 1), ("BOOL", 1), ("BF16", 2), ("F16", 2), ("F32", 4), ("I64", 8)];

prop_compose! {
    /// Tensors that tile a buffer, in shuffled order, then damaged at some places by small amounts.
    fn damaged_tiling()(
        parts in prop::collection::vec((0_usize..6, prop::collection::vec(0_u64..4, 0..3)), 0..6),
        order in any::<u64>(),
        damage in prop::collection::vec((0_usize..12, -4_i64..5), 0..3),
        tail in prop_oneof![3 => Just(0_i64), 1 => -9_i64..10],
    ) -> (String, usize) {
        let mut begin = 0;
        let mut tensors: Vec<_> = parts.into_iter().map(|(dtype, shape)| {
            let (dtype, size) = DTYPES[dtype];
            let end = begin + size * shape.iter().product::<u64>();
            let tensor = (dtype, shape, begin, end);
            begin = end;
            tensor
        }).collect();
        let count = tensors.len();
        for (place, amount) in damage {
            if let Some(tensor) = tensors.get_mut(place / 2) {
                let offset = if place % 2 == 0 { &mut tensor.2 } else { &mut tensor.3 };
                *offset = offset.saturating_add_signed(amount);
            }
        }
        if count > 0 {
            tensors.rotate_left(order as usize % count);
        }
        (header(&tensors), begin.saturating_add_signed(tail) as usize)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_tilings_are_accepted_exactly_when_the_reference_reader_does((header, data) in damaged_tiling()) {
        let bytes = raw(&header, data);
        let reference = safetensors::SafeTensors::deserialize(&bytes);
        let ours = crate::weights::header::parse("x", &bytes[8..8 + header.len()], bytes.len() as u64);
        prop_assert_eq!(ours.is_ok(), reference.is_ok(), "{} with {} bytes: {:?}", header, data, ours.err());
        if let (Ok(ours), Ok(reference)) = (ours, reference) {
            for (name, entry) in &ours.entries {
                let expected = reference.tensor(name).unwrap();
                prop_assert_eq!(&bytes[entry.start..entry.start + entry.length], expected.data());
                prop_assert_eq!(&entry.shape[..], expected.shape());
            }
        }
    }

    #[test]
    fn hostile_numbers_never_panic_nor_are_accepted_outside_the_file(
        dtype in 0_usize..6,
        shape in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), Just(1 << 32), Just(1 << 61), 0_u64..9], 0..4),
        begin in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
        end in prop_oneof![Just(u64::MAX), Just(0), 0_u64..80],
        data in 0_u64..80,
    ) {
        let header = header(&[(DTYPES[dtype].0, shape, begin, end)]);
        let length = 8 + header.len() as u64 + data;
        if let Ok(header) = crate::weights::header::parse("x", header.as_bytes(), length) {
            let entry = &header.entries["t0"];
            prop_assert_eq!(entry.start as u64 + entry.length as u64, length);
            prop_assert_eq!(entry.start, header.data_start);
            let elements: usize = entry.shape.iter().product();
            prop_assert_eq!(elements as u64 * DTYPES[dtype].1, entry.length as u64);
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), length in any::<u64>()) {
        let _ = crate::weights::header::parse("x", &bytes, length.max(8 + bytes.len() as u64));
        bytes.insert(0, b'{');
        let _ = crate::weights::header::parse("x", &bytes, length.max(8 + bytes.len() as u64));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = crate::weights::header::parse("x", text.as_bytes(), length.max(8 + text.len() as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_file_with_changed_bytes_or_end_is_refused_or_stays_inside_its_map(
        changes in prop::collection::vec((0_usize..170, any::<u8>()), 0..4),
        cut in prop_oneof![Just(0_usize), 0_usize..180],
    ) {
        let header = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}"#;
        let mut bytes = raw(header, 20);
        for (place, byte) in changes {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(file) = open(&bytes) {
            for name in file.names() {
                if let Ok(view) = file.tensor(name) {
                    prop_assert_eq!(view.bytes().len(), view.elements() * view.dtype.size());
                }
            }
        }
    }
}
