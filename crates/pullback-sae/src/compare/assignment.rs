//! The assignment of greatest total weight, by shortest augmenting paths.
//!
//! Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
//! Computing 38 (1987), with the row reduction of their first phase; the search is Dijkstra's with prices, as Crouse
//! describes it ("On implementing 2D rectangular assignment algorithms", IEEE TAES 52 (2016)). It is here because it
//! has to run on a list of near neighbours as well as on a whole matrix in `f32`, and to stop when it is asked to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use pullback_artifact::{Control, Interrupted};

/// An assignment of rows to columns, and prices that prove it to be one of greatest weight: for each pair on offer
/// `row_prices[i] + column_prices[j] ≥ weight`, with equality in the pairs chosen, and columns not chosen are free of
/// charge.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The column of each row; none only where pairs are not all on offer.
    pub columns: Vec<Option<u32>>,
    /// Prices of the rows.
    pub row_prices: Vec<f64>,
    /// Prices of the columns, none below zero.
    pub column_prices: Vec<f64>,
}

const NONE: usize = usize::MAX;

/// The state of the search in terms of costs, the negative weights.
struct Search {
    row_costs: Vec<f64>,
    column_costs: Vec<f64>,
    column_of: Vec<usize>,
    row_of: Vec<usize>,
    /// The row from which each column was reached.
    from: Vec<usize>,
    distance: Vec<f64>,
    rows_seen: Vec<usize>,
    columns_done: Vec<usize>,
}

impl Search {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            row_costs: vec![0.0; rows],
            column_costs: vec![0.0; columns],
            column_of: vec![NONE; rows],
            row_of: vec![NONE; columns],
            from: vec![NONE; columns],
            distance: vec![f64::INFINITY; columns],
            rows_seen: Vec::new(),
            columns_done: Vec::new(),
        }
    }

    /// Gives a row its cheapest column if that is free.
    fn reduce(&mut self, row: usize, edges: impl Iterator<Item = (usize, f64)>) {
        let mut best = (NONE, f64::INFINITY);
        for (column, cost) in edges {
            if cost < best.1 || (cost == best.1 && best.0 != NONE && self.row_of[best.0] != NONE) {
                best = (column, cost);
            }
        }
        if best.0 == NONE {
            return;
        }
        self.row_costs[row] = best.1;
        if self.row_of[best.0] == NONE {
            self.row_of[best.0] = row;
            self.column_of[row] = best.0;
        }
    }

    /// Changes prices and pairs along the shortest path from `start` to the free column `end`.
    fn augment(&mut self, start: usize, end: usize) {
        let length = self.distance[end];
        for &row in &self.rows_seen {
            self.row_costs[row] += if row == start {
                length
            } else {
                length - self.distance[self.column_of[row]]
            };
        }
        for &column in &self.columns_done {
            self.column_costs[column] -= length - self.distance[column];
        }
        let mut column = end;
        loop {
            let row = self.from[column];
            self.row_of[column] = row;
            std::mem::swap(&mut self.column_of[row], &mut column);
            if row == start {
                break;
            }
        }
        self.rows_seen.clear();
        self.columns_done.clear();
    }

    fn finish(self, columns: usize) -> Assignment {
        Assignment {
            columns: self
                .column_of
                .into_iter()
                .map(|column| (column < columns).then_some(column as u32))
                .collect(),
            row_prices: self.row_costs.into_iter().map(|x| 0.0 - x).collect(),
            column_prices: self.column_costs[..columns]
                .iter()
                .map(|x| 0.0 - x)
                .collect(),
        }
    }
}

/// Gives every row a column of its own such that the sum of `weights [rows, columns]` is greatest.
///
/// Time grows as `rows²·columns` at worst.
///
/// # Errors
/// The work was interrupted.
///
/// # Panics
/// There are more rows than columns, the slice has another size, or a weight is not finite.
pub fn assign_dense(
    weights: &[f32],
    rows: usize,
    columns: usize,
    control: &Control,
) -> Result<Assignment, Interrupted> {
    assert!(
        rows <= columns && weights.len() == rows * columns,
        "{} weights for {rows} rows and {columns} columns",
        weights.len()
    );
    assert!(
        weights.iter().all(|weight| weight.is_finite()),
        "weights must be finite"
    );
    let costs = |row: usize| &weights[row * columns..(row + 1) * columns];
    let mut search = Search::new(rows, columns);
    let stage = control.stage("matching", rows as u64, "features");
    for row in 0..rows {
        let edges = costs(row).iter().enumerate();
        search.reduce(
            row,
            edges.map(|(column, &weight)| (column, -f64::from(weight))),
        );
    }
    let mut open: Vec<u32> = Vec::with_capacity(columns);
    for start in 0..rows {
        control.check()?;
        stage.advance(1);
        if search.column_of[start] != NONE {
            continue;
        }
        open.clear();
        open.extend(0..columns as u32);
        search.distance.fill(f64::INFINITY);
        let (mut row, mut reached) = (start, 0.0);
        let end = loop {
            search.rows_seen.push(row);
            let (costs, base) = (costs(row), reached - search.row_costs[row]);
            let (mut least, mut at) = (f64::INFINITY, 0);
            for (place, &column) in open.iter().enumerate() {
                let column = column as usize;
                let through = base - f64::from(costs[column]) - search.column_costs[column];
                if through < search.distance[column] {
                    search.distance[column] = through;
                    search.from[column] = row;
                }
                let distance = search.distance[column];
                // Of equally near columns a free one ends the search.
                if distance < least || (distance == least && search.row_of[column] == NONE) {
                    (least, at) = (distance, place);
                }
            }
            let column = open.swap_remove(at) as usize;
            reached = least;
            if search.row_of[column] == NONE {
                break column;
            }
            search.columns_done.push(column);
            row = search.row_of[column];
        };
        search.augment(start, end);
    }
    stage.finish();
    Ok(search.finish(columns))
}

/// A distance in the queue; finite, so that its order is total.
#[derive(Clone, Copy, PartialEq)]
struct Queued(f64, usize);

impl Eq for Queued {}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// As [`assign_dense`] where only some pairs are on offer: for each row its columns with their weights. A row may go
/// without a column at weight zero, so pairs of negative weight are never chosen.
///
/// # Errors
/// The work was interrupted.
///
/// # Panics
/// A column is not below `columns`, or a weight is not finite.
pub fn assign_sparse(
    offers: &[Vec<(u32, f32)>],
    columns: usize,
    control: &Control,
) -> Result<Assignment, Interrupted> {
    assert!(
        offers
            .iter()
            .flatten()
            .all(|(column, weight)| (*column as usize) < columns && weight.is_finite()),
        "an offer is out of range"
    );
    let rows = offers.len();
    // Each row has a column of its own that stands for going without.
    let edges = |row: usize| {
        let offers = offers[row].iter();
        offers
            .map(|&(column, weight)| (column as usize, -f64::from(weight)))
            .chain([(columns + row, 0.0)])
    };
    let mut search = Search::new(rows, columns + rows);
    let stage = control.stage("matching", rows as u64, "features");
    for row in 0..rows {
        search.reduce(row, edges(row));
    }
    let mut done = vec![false; columns + rows];
    let mut touched: Vec<usize> = Vec::new();
    let mut queue = BinaryHeap::new();
    for start in 0..rows {
        control.check()?;
        stage.advance(1);
        if search.column_of[start] != NONE {
            continue;
        }
        let (mut row, mut reached) = (start, 0.0);
        let end = loop {
            search.rows_seen.push(row);
            let base = reached - search.row_costs[row];
            for (column, cost) in edges(row) {
                let through = base + cost - search.column_costs[column];
                if !done[column] && through < search.distance[column] {
                    if search.distance[column] == f64::INFINITY {
                        touched.push(column);
                    }
                    search.distance[column] = through;
                    search.from[column] = row;
                    queue.push(Reverse(Queued(through, column)));
                }
            }
            // What was queued twice is done the second time. The column of going without ends every search, so the
            // queue does not run empty.
            let mut next = NONE;
            let mut distance = reached;
            while let Some(Reverse(Queued(queued, column))) = queue.pop() {
                if !done[column] {
                    (next, distance) = (column, queued);
                    break;
                }
            }
            let column = next;
            done[column] = true;
            reached = distance;
            if search.row_of[column] == NONE {
                break column;
            }
            search.columns_done.push(column);
            row = search.row_of[column];
        };
        search.augment(start, end);
        queue.clear();
        for column in touched.drain(..) {
            search.distance[column] = f64::INFINITY;
            done[column] = false;
        }
    }
    stage.finish();
    Ok(search.finish(columns))
}
