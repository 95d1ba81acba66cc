//! The `gemm` crate's product, to hold the engine's against in one process. Only in builds with the feature `rivals`; nothing
//! but benchmarks uses it.

/// C `[m, n]` = left `[m, k]` · right, all row-major, on the threads of the current rayon pool. `right` is `[k, n]`, or `[n, k]` if
/// `transposed`.
///
/// # Panics
/// Where an operand is not as long as its shape.
pub fn product(m: usize, n: usize, k: usize, left: &[f32], right: &[f32], transposed: bool, c: &mut [f32]) {
    assert_eq!((left.len(), right.len(), c.len()), (m * k, k * n, m * n), "operands of [{m}, {k}]·[{k}, {n}]");
    let (right_columns, right_rows) = if transposed { (k as isize, 1) } else { (1, n as isize) };
    let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
    // SAFETY: the strides stay within the lengths just checked, C is borrowed exclusively, and with `read_dst` false the
    // factor on what C held is not used.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            left.as_ptr(),
            1,
            k as isize,
            right.as_ptr(),
            right_columns,
            right_rows,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_give_the_product() {
        let (left, right) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        let mut c = [0.0; 4];
        product(2, 2, 3, &left, &right, false, &mut c);
        assert_eq!(c, [5.0, 11.0, 14.0, 23.0]);
        product(2, 2, 3, &left, &[1.0, 2.0, 0.0, 0.0, 1.0, 3.0], true, &mut c);
        assert_eq!(c, [5.0, 11.0, 14.0, 23.0]);
    }
}
