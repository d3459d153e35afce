//! The Merkle tree over the records of the audit log, as in RFC 6962, section 2.1:
//! leaves and nodes are hashed with different prefixes.
//!
//! Only the right edge is kept, a hash for each full subtree, so that a leaf costs
//! about two hashes and the memory grows with the logarithm. Whole-tree crates
//! (`ct-merkle`) keep every leaf, which a log of years cannot.

use sha2::{Digest, Sha256};

/// A tree that is only appended to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tree {
    size: u64,
    /// Roots of the full subtrees, the largest first: one for each bit of `size` that is set.
    edge: Vec<[u8; 32]>,
}

impl Tree {
    /// Goes on at a tree of that size and edge; `None` if they do not belong together.
    pub fn resume(size: u64, edge: Vec<[u8; 32]>) -> Option<Self> {
        (u32::try_from(edge.len()).ok()? == size.count_ones()).then_some(Self { size, edge })
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the full subtrees, the largest first.
    pub fn edge(&self) -> &[[u8; 32]] {
        &self.edge
    }

    /// Appends a leaf with that content.
    pub fn push(&mut self, content: &[u8]) {
        let mut hash: [u8; 32] =
            Sha256::new().chain_update([0]).chain_update(content).finalize().into();
        // Each trailing one of the size is a full subtree as large as what was made so far.
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.edge.pop() else { break };
            hash = node(&left, &hash);
        }
        self.edge.push(hash);
        self.size += 1;
    }

    /// The hash of the whole tree; of an empty one that of nothing.
    pub fn root(&self) -> [u8; 32] {
        let mut hashes = self.edge.iter().rev();
        let Some(last) = hashes.next() else { return Sha256::digest([]).into() };
        hashes.fold(*last, |right, left| node(left, &right))
    }
}

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves and roots of the reference implementation of Certificate Transparency.
    const LEAVES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    #[test]
    fn the_roots_are_those_of_certificate_transparency() {
        let mut tree = Tree::default();
        assert_eq!(hex::encode(tree.root()), ROOTS[0]);
        for (leaf, root) in LEAVES.iter().zip(&ROOTS[1..]) {
            tree.push(&hex::decode(leaf).unwrap());
            assert_eq!(hex::encode(tree.root()), *root, "of {} leaves", tree.size());
        }
    }

    #[test]
    fn the_root_is_the_recursive_definition_of_rfc_6962() {
        fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
            match leaves {
                [] => Sha256::digest([]).into(),
                [leaf] => Sha256::new().chain_update([0]).chain_update(leaf).finalize().into(),
                [..] => {
                    let left = leaves.len().next_power_of_two() / 2;
                    node(&root(&leaves[..left]), &root(&leaves[left..]))
                }
            }
        }
        let leaves: Vec<[u8; 32]> =
            (0..300_u16).map(|n| Sha256::digest(n.to_be_bytes()).into()).collect();
        let mut tree = Tree::default();
        for count in 0..leaves.len() {
            assert_eq!(tree.root(), root(&leaves[..count]), "{count}");
            let again = Tree::resume(tree.size(), tree.edge().to_vec()).unwrap();
            assert_eq!(again, tree);
            tree.push(&leaves[count]);
        }
        assert_eq!(Tree::resume(3, vec![[0; 32]]), None);
    }
}
