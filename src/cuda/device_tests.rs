//! The device's buffers, held to the CPU's: copies bit by bit, sums in bf16 to their one rounding. Skipped where there is no GPU or NVRTC.

use super::buffer::{Element, stride};
use super::compile::{Compiler, Program};
use super::device::{Cuda, Options};
use super::launch::Arg;
use super::{Error, caught, probe};
use crate::ops::Backend;
use crate::ops::case::Values;
use crate::weights::{Dtype, TensorView};
use half::bf16;

/// A device whose buffers are allocations of their own.
fn device() -> Option<Cuda> {
    match Cuda::with(Options { recycles: false, ..Options::default() }) {
        Ok(cuda) => Some(cuda),
        Err(Error::Missing(missing)) => {
            eprintln!("skipped: {}", Error::Missing(missing));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn values(name: &str, count: usize) -> Vec<f32> {
    let mut values = Values::new(name);
    (0..count).map(|_| values.next(1.0)).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
}

#[test]
fn buffers_hold_what_was_put_in_and_zeros_beside() {
    let Some(cuda) = device() else { return };
    for (rows, cols) in [(0, 5), (1, 1), (3, 64), (5, 65), (7, 200)] {
        let host = values("upload", rows * cols);
        let buf = cuda.upload(rows, cols, &host);
        assert_eq!((buf.rows(), buf.cols(), buf.stride()), (rows, cols, stride(cols)));
        assert_eq!(cuda.download(&buf), widened(&host));
        let narrow = cuda.in_bf16(&buf);
        assert_eq!(cuda.download(&narrow), widened(&rounded(&host)), "rounded once");
        let copy = cuda.duplicate(&narrow);
        assert_eq!(copy.element(), Element::Bf16);
        for buf in [&buf, &narrow, &copy, &cuda.in_f32(&copy)] {
            for row in cuda.padded(buf).chunks_exact(stride(cols)) {
                assert!(row[cols..].iter().all(|&value| value == 0.0), "padding of [{rows}, {cols}]");
            }
        }
        assert_eq!(cuda.download(&cuda.zeros(rows, cols)), vec![0.0; rows * cols]);
    }
}

#[test]
fn sums_and_moved_rows_are_those_of_the_host() {
    let Some(cuda) = device() else { return };
    let (rows, cols) = (9, 70);
    let (one, two) = (values("one", rows * cols), values("two", 4 * cols));
    let chosen = [7, 0, 3, 8];
    for narrow_target in [false, true] {
        for narrow_source in [false, true] {
            let buffer = |values: &[f32], narrow: bool| {
                let buf = cuda.upload(values.len() / cols, cols, values);
                if narrow { cuda.duplicate(&cuda.in_bf16(&buf)) } else { buf }
            };
            let stored = |values: &[f32], narrow: bool| if narrow { rounded(values) } else { values.to_vec() };
            let mut target = buffer(&one, narrow_target);
            let source = buffer(&two, narrow_source);
            let gathered = cuda.gather_rows(&target, &chosen);
            let mut expected = stored(&one, narrow_target);
            let rows_of: Vec<f32> =
                chosen.iter().flat_map(|&row| expected[row as usize * cols..][..cols].to_vec()).collect();
            assert_eq!(cuda.download(&gathered), widened(&rows_of));

            cuda.scatter_add_rows(&mut target, &source, &chosen);
            for (row, added) in chosen.iter().zip(stored(&two, narrow_source).chunks_exact(cols)) {
                for (value, added) in expected[*row as usize * cols..].iter_mut().zip(added) {
                    *value = stored(&[*value + added], narrow_target)[0];
                }
            }
            assert_eq!(cuda.download(&target), widened(&expected));

            let mut sum = cuda.gather_rows(&target, &chosen);
            cuda.add_assign(&mut sum, &source);
            let rows_of: Vec<f32> = (chosen.iter())
                .flat_map(|&row| expected[row as usize * cols..][..cols].to_vec())
                .zip(stored(&two, narrow_source))
                .map(|(value, added)| stored(&[value + added], narrow_target)[0])
                .collect();
            assert_eq!(cuda.download(&sum), widened(&rows_of));
        }
    }
}

#[test]
fn factors_are_made_again_only_when_the_parameters_changed() {
    let Some(cuda) = device() else { return };
    let host = values("params", 300);
    let mut params = cuda.upload(1, 300, &host);
    let factor = cuda.factor(&params, 7, 3, 70);
    assert_eq!(cuda.download(&factor), widened(&rounded(&host[7..7 + 210])));
    assert!(std::sync::Arc::ptr_eq(&factor, &cuda.factor(&params, 7, 3, 70)));
    let added = cuda.upload(1, 300, &host);
    cuda.add_assign(&mut params, &added);
    let twice: Vec<f32> = host.iter().map(|value| 2.0 * value).collect();
    assert_eq!(cuda.download(&cuda.factor(&params, 7, 3, 70)), widened(&rounded(&twice[7..7 + 210])));
}

#[test]
fn weights_are_rounded_padded_and_uploaded_once() {
    let Some(cuda) = device() else { return };
    let host = values("weight", 5 * 70);
    let bytes: Vec<u8> = host.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::from_bytes("w", Dtype::F32, &[5, 70], &bytes).unwrap();
    let weight = cuda.weight(&view).unwrap();
    assert_eq!(cuda.download(weight.buf()), widened(&rounded(&host)));
    assert_eq!(cuda.download(weight.stored(&cuda)), widened(&host), "as stored");
    let lent = cuda.memory().lent;
    let again = cuda.weight(&view.clone()).unwrap();
    assert_eq!((again.buf().address(), cuda.memory().lent), (weight.buf().address(), lent));
    let vector = TensorView::from_bytes("v", Dtype::F32, &[350], &bytes).unwrap();
    assert_eq!(cuda.download(cuda.weight(&vector).unwrap().buf()), widened(&rounded(&host)));
    let words = TensorView::from_bytes("i", Dtype::U8, &[350], &bytes[..350]).unwrap();
    assert!(cuda.weight(&words).is_err());
}

#[test]
fn dropped_buffers_are_lent_again() {
    let Some(_) = device() else { return };
    let cuda = Cuda::with(Options::default()).unwrap();
    let pass = || drop([cuda.zeros(100, 640), cuda.zeros(100, 64)]);
    pass();
    let before = cuda.memory();
    pass();
    assert_eq!(cuda.memory(), before);
    assert_eq!((before.lent, before.allocations), (0, 2));
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let Some(cuda) = device() else { return };
    let kernel = cuda.kernel("buffers.cu", "to_f32", &[]);
    let launch = |grid, args: &[Arg]| caught(|| cuda.launch(&kernel, [grid, 1, 1], [32, 1, 1], 0, args));
    let error = launch(1, &[Arg::null(), 3_u32.into()]).expect_err("a pointer is missing");
    assert!(matches!(error, Error::Arguments { .. }), "{error}");
    launch(0, &[]).expect("an empty grid is no launch");
    let error = caught(|| cuda.kernel("buffers.cu", "to_f64", &[])).err().expect("no such entry point");
    assert!(matches!(error, Error::NoEntry { .. }), "{error}");
}

#[test]
fn the_kernels_of_buffers_compile() {
    let Ok(toolchain) = probe::toolchain() else {
        eprintln!("skipped: no NVRTC here (tools/get_nvrtc fetches it)");
        return;
    };
    let ptx = Compiler::new(toolchain, None).ptx(&Program::new("buffers.cu", &[])).unwrap();
    assert!(ptx.contains(".entry scatter_bf16_f32"));
}
