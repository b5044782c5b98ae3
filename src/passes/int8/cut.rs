//! Minimum cut (Dinic 1970), for "which side does each thing belong to, when neighbours should not be parted".

use std::collections::VecDeque;

/// More than any sum of finite capacities.
pub const INFINITE: u64 = 1 << 60;

/// A directed graph with capacities. Node 0 is the source, node 1 the sink.
pub struct Network {
    /// For each node its edges, as places in `edges`; an edge and its reverse are neighbours (`i ^ 1`).
    out: Vec<Vec<usize>>,
    edges: Vec<(usize, u64)>,
}

/// The source.
pub const SOURCE: usize = 0;
/// The sink.
pub const SINK: usize = 1;

impl Network {
    /// Source and sink alone.
    pub fn new() -> Network {
        Network {
            out: vec![Vec::new(); 2],
            edges: Vec::new(),
        }
    }

    /// One more node.
    pub fn node(&mut self) -> usize {
        self.out.push(Vec::new());
        self.out.len() - 1
    }

    /// Parting `from` (on the source's side) from `to` (on the sink's) costs `capacity`.
    pub fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        if from == to || capacity == 0 {
            return;
        }
        self.out[from].push(self.edges.len());
        self.edges.push((to, capacity));
        self.out[to].push(self.edges.len());
        self.edges.push((from, 0));
    }

    /// For every node whether it is on the source's side of the cheapest cut; of several such cuts the one with the fewest
    /// nodes there. Edges of capacity [`INFINITE`] from source to sink must not exist.
    pub fn source_side(mut self) -> Vec<bool> {
        loop {
            let level = self.levels();
            if level[SINK].is_none() {
                return level.iter().map(Option::is_some).collect();
            }
            self.block(&level);
        }
    }

    fn levels(&self) -> Vec<Option<u32>> {
        let mut level = vec![None; self.out.len()];
        level[SOURCE] = Some(0);
        let mut queue = VecDeque::from([SOURCE]);
        while let Some(n) = queue.pop_front() {
            for &e in &self.out[n] {
                let (to, left) = self.edges[e];
                if left > 0 && level[to].is_none() {
                    level[to] = level[n].map(|l| l + 1);
                    queue.push_back(to);
                }
            }
        }
        level
    }

    /// Fills every path of the level graph, one after the other, walking with an explicit stack.
    fn block(&mut self, level: &[Option<u32>]) {
        let mut next = vec![0usize; self.out.len()];
        let mut path: Vec<usize> = Vec::new();
        loop {
            let n = path.last().map_or(SOURCE, |&e| self.edges[e].0);
            if n == SINK {
                let flow = path.iter().map(|&e| self.edges[e].1).min().unwrap_or(0);
                for &e in &path {
                    self.edges[e].1 -= flow;
                    self.edges[e ^ 1].1 += flow;
                }
                path.clear();
                continue;
            }
            let step = self.out[n][next[n]..].iter().position(|&e| {
                let (to, left) = self.edges[e];
                left > 0 && level[to].is_some() && level[to] == level[n].map(|l| l + 1)
            });
            match step {
                Some(skip) => {
                    next[n] += skip;
                    path.push(self.out[n][next[n]]);
                }
                None => {
                    next[n] = self.out[n].len();
                    let Some(dead) = path.pop() else { return };
                    let before = self.edges[dead ^ 1].0;
                    next[before] += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cheapest cut by trying all.
    fn exhaustive(nodes: usize, edges: &[(usize, usize, u64)]) -> u64 {
        let cost = |side: u32| -> u64 {
            let on = |n: usize| n == SOURCE || (n != SINK && side >> n & 1 == 1);
            edges.iter().filter(|e| on(e.0) && !on(e.1)).map(|e| e.2).sum()
        };
        (0..1u32 << nodes).map(cost).min().unwrap_or(0)
    }

    #[test]
    fn the_cut_is_the_cheapest_of_all() {
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let nodes = 3 + random(6) as usize;
            let edges: Vec<(usize, usize, u64)> = (0..random(25))
                .map(|_| (random(nodes as u64) as usize, random(nodes as u64) as usize, random(10)))
                .filter(|e| e.0 != e.1)
                .collect();
            let mut net = Network::new();
            (2..nodes).for_each(|_| {
                net.node();
            });
            edges.iter().for_each(|e| net.edge(e.0, e.1, e.2));
            let side = net.source_side();
            let cost: u64 = edges.iter().filter(|e| side[e.0] && !side[e.1]).map(|e| e.2).sum();
            assert_eq!(cost, exhaustive(nodes, &edges));
        }
    }
}
