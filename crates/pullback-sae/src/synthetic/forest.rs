//! Which feature fires only together with which, and how often each does.

use std::ops::Range;

use super::WorldConfig;

/// The trees of a world. Features are numbered level by level: first all roots, then the children of each root in turn,
/// and so on; those that are left belong to no tree and fire as roots do.
#[derive(Clone, Debug, PartialEq)]
pub struct Forest {
    parents: Vec<Option<u32>>,
    children: Vec<Range<u32>>,
    probabilities: Vec<f64>,
    exclusive: bool,
}

impl Forest {
    /// The trees that a configuration asks for, as far as its features reach.
    pub(super) fn new(config: &WorldConfig) -> Self {
        let hierarchy = &config.hierarchy;
        let n = config.features;
        let mut probabilities = config.wanted_probabilities();
        let mut parents = vec![None; n];
        let mut children = vec![0..0; n];
        let mut next = hierarchy.roots;
        let mut level = 0..hierarchy.roots;
        for _ in 0..hierarchy.depth {
            let above = level.clone();
            let start = next;
            for parent in above {
                let last = n.min(next.saturating_add(hierarchy.branching));
                children[parent] = next as u32..last as u32;
                let family = next..last;
                next = last;
                for child in family.clone() {
                    parents[child] = Some(parent as u32);
                }
                // Parents come before their children, so a parent's probability is final here.
                let most = hierarchy.share * probabilities[parent];
                if hierarchy.exclusive {
                    let sum: f64 = probabilities[family.clone()].iter().sum();
                    if sum > most {
                        for p in &mut probabilities[family] {
                            *p *= most / sum;
                        }
                    }
                } else {
                    for p in &mut probabilities[family] {
                        *p = p.min(most);
                    }
                }
            }
            level = start..next;
            if level.is_empty() {
                break;
            }
        }
        Self {
            parents,
            children,
            probabilities,
            exclusive: hierarchy.exclusive,
        }
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.parents.len()
    }

    /// The feature without which this one does not fire.
    ///
    /// # Panics
    /// If there is no such feature.
    pub fn parent(&self, feature: usize) -> Option<u32> {
        self.parents[feature]
    }

    /// The features that fire only when this one does.
    ///
    /// # Panics
    /// If there is no such feature.
    pub fn children(&self, feature: usize) -> Range<u32> {
        self.children[feature].clone()
    }

    /// Whether at most one child of a parent fires at a time.
    pub fn exclusive(&self) -> bool {
        self.exclusive
    }

    /// How often each feature fires, exactly: the probability asked for where the trees leave room for it, less where
    /// children would be more frequent than their parent.
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// Mean number of features that fire at a time, among the first `features`.
    pub fn l0(&self, features: usize) -> f64 {
        self.probabilities.iter().take(features).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Forest;
    use crate::synthetic::WorldConfig;

    #[test]
    fn probabilities_follow_zipf() {
        let config = WorldConfig::new(768, 16_384, 0);
        let p = config.wanted_probabilities();
        assert!((p[0] - 0.4).abs() < 1e-15 && (p[16_383] - 5e-4).abs() < 1e-15);
        // (i^-1/2 - 1/128) / (1 - 1/128) at i = 64: (1/8 - 1/128) / (127/128) = 15/127.
        assert!((p[63] - (5e-4 + 0.3995 * 15.0 / 127.0)).abs() < 1e-15);
        assert!(p.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn the_published_forest_has_its_shape() {
        let forest = Forest::new(&WorldConfig::new(768, 16_384, 0));
        let in_trees = 128 * (1 + 4 + 16 + 64);
        let depth = |feature: usize| {
            let mut at = feature;
            let mut depth = 0;
            while let Some(parent) = forest.parent(at) {
                assert!(forest.children(parent as usize).contains(&(at as u32)));
                at = parent as usize;
                depth += 1;
            }
            depth
        };
        let mut levels = [0; 4];
        (0..in_trees).for_each(|feature| levels[depth(feature)] += 1);
        assert_eq!(levels, [128, 512, 2048, 8192]);
        assert!((in_trees..16_384).all(|feature| forest.parent(feature).is_none()));
        assert_eq!(forest.parent(128 + 4 * 5 + 3), Some(5));
    }

    #[test]
    fn children_leave_their_parent_room() {
        for (exclusive, share) in [(true, 0.9), (false, 0.3)] {
            let mut config = WorldConfig::new(64, 1000, 0);
            config.hierarchy.exclusive = exclusive;
            config.hierarchy.share = share;
            let wanted = config.wanted_probabilities();
            let forest = Forest::new(&config);
            let p = forest.probabilities();
            let mut rarer = 0;
            for parent in 0..1000 {
                let family = forest.children(parent);
                let family = family.start as usize..family.end as usize;
                let sum: f64 = p[family.clone()].iter().sum();
                let asked: f64 = wanted[family.clone()].iter().sum();
                let most = share * p[parent];
                if exclusive {
                    assert!(sum <= most * (1.0 + 1e-12));
                    // Less than was asked for only where the parent has no more to give.
                    assert!((sum - asked).abs() < 1e-12 || (sum - most).abs() < 1e-12);
                }
                for child in family {
                    assert!(p[child] > 0.0 && p[child] <= most * (1.0 + 1e-12));
                    rarer += usize::from(p[child] < wanted[child]);
                }
            }
            assert!(rarer > 0 && rarer < 1000);
            assert_eq!(p[..7], wanted[..7]);
        }
    }
}
