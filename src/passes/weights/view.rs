//! A weight tensor as a matrix: which axes its rows run over, and which its columns.
//!
//! The parameters of blocks along the last column axis form a tensor of the same rank; seen with the same axes it is the
//! matrix rows × blocks of a [`Grid`](crate::math::grid::Grid).

use anyhow::{Result, ensure};
use ndarray::Array2;

/// Axes of rows and columns, outermost first.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Axes that rows run over.
    pub rows: Vec<usize>,
    /// Axes that columns run over; blocks lie along the last.
    pub columns: Vec<usize>,
}

impl View {
    /// The element of each row's, and each column's, first member; an element's place is the sum of the two.
    fn places(&self, dims: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let along = |axes: &[usize]| {
            axes.iter().fold(vec![0], |places, &axis| {
                let step = |p: usize| (0..dims[axis]).map(move |i| p + i * stride(axis));
                places.into_iter().flat_map(step).collect::<Vec<usize>>()
            })
        };
        (along(&self.rows), along(&self.columns))
    }

    /// The matrix of a tensor.
    ///
    /// # Errors
    /// When the data are not as many as the dimensions say.
    pub fn matrix<T: Copy>(&self, dims: &[usize], data: &[T]) -> Result<Array2<T>> {
        ensure!(
            data.len() == dims.iter().product::<usize>(),
            "{} numbers for {dims:?}",
            data.len()
        );
        let (rows, columns) = self.places(dims);
        Ok(Array2::from_shape_fn((rows.len(), columns.len()), |(r, c)| {
            data[rows[r] + columns[c]]
        }))
    }

    /// The tensor of a matrix.
    ///
    /// # Errors
    /// When the matrix has another shape.
    pub fn tensor<T: Copy + Default>(&self, dims: &[usize], matrix: &Array2<T>) -> Result<Vec<T>> {
        let (rows, columns) = self.places(dims);
        ensure!(
            matrix.dim() == (rows.len(), columns.len()),
            "{:?} for {dims:?}",
            matrix.dim()
        );
        let mut data = vec![T::default(); rows.len() * columns.len()];
        for ((r, c), &x) in matrix.indexed_iter() {
            data[rows[r] + columns[c]] = x;
        }
        Ok(data)
    }

    /// The axis that blocks lie along, and its length.
    pub fn span(&self, dims: &[usize]) -> (usize, usize) {
        let axis = self.columns.last().copied().unwrap_or(0);
        (axis, dims.get(axis).copied().unwrap_or(1))
    }

    /// Where the columns of the view with `natural` column axes stand among those of this one.
    pub fn order(&self, natural: &[usize], dims: &[usize]) -> Vec<usize> {
        let inner = |axes: &[usize], axis: usize| {
            axes.iter()
                .skip_while(|a| **a != axis)
                .skip(1)
                .map(|a| dims[*a])
                .product::<usize>()
        };
        let (_, columns) = self.places(dims);
        let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let column = |place: &usize| {
            natural
                .iter()
                .map(|&a| place / stride(a) % dims[a] * inner(natural, a))
                .sum()
        };
        columns.iter().map(column).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_become_tensors_again() {
        let dims = [2, 3, 4];
        let data: Vec<i32> = (0..24).collect();
        for (rows, columns) in [(vec![0], vec![2, 1]), (vec![1], vec![0, 2]), (vec![0, 1], vec![2])] {
            let view = View { rows, columns };
            let m = view.matrix(&dims, &data).expect("fits");
            assert_eq!(view.tensor(&dims, &m).expect("fits"), data);
        }
        let view = View {
            rows: vec![0],
            columns: vec![2, 1],
        };
        let m = view.matrix(&dims, &data).expect("fits");
        assert_eq!(m.row(0).to_vec(), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(view.order(&[1, 2], &dims), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(view.span(&dims), (1, 3));
    }
}
