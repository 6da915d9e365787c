//! A systematic Reed–Solomon erasure code over GF(256), for small groups of short shards.
//!
//! The matrix is a Cauchy matrix (J. Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme", ICSI
//! TR-95-048), its columns scaled so that the first parity is the plain XOR of all shards. Any of its square
//! submatrices can be inverted, so any `e` parities give back any `e` lost shards. The field is that of
//! RFC 5510 (x^8 + x^4 + x^3 + x^2 + 1).
//!
//! Why not `reed-solomon-simd`: it is made for thousands of shards, and each of its decodings begins with
//! a transform over 65,536 elements, which for a group of some 16 datagrams costs several times what the
//! group itself does. Here the cost is (lost × group) multiplications of a shard, and nothing is kept.

/// Shards of a group. With the parities it must stay within the field.
pub(crate) const MAX_SHARDS: usize = 64;
pub(crate) const MAX_PARITIES: usize = 64;

const POLYNOMIAL: u8 = 0x1d;

/// All products.
static PRODUCTS: [[u8; 256]; 256] = products();

#[expect(
    clippy::indexing_slicing,
    reason = "constant evaluation, over all bytes"
)]
const fn products() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut a = 0;
    while a < 256 {
        let mut b = 1;
        while b < 256 {
            let half = table[a][b >> 1];
            let double = (half << 1) ^ if half & 0x80 == 0 { 0 } else { POLYNOMIAL };
            table[a][b] = double ^ if b & 1 == 0 { 0 } else { a as u8 };
            b += 1;
        }
        a += 1;
    }
    table
}

#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
fn times(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a)][usize::from(b)]
}

/// a^254: every element but nought has its inverse.
fn inverse(a: u8) -> u8 {
    let (mut power, mut out) = (a, 1);
    for _ in 1..8 {
        power = times(power, power);
        out = times(out, power);
    }
    out
}

/// What shard `shard` counts in parity `parity`.
fn coefficient(parity: u8, shard: u8) -> u8 {
    // Parities lie at 255, 254, …, shards at 0, 1, …: never the same.
    times(255 ^ shard, inverse((255 - parity) ^ shard))
}

/// sum += factor × shard; what the sum has beyond the shard's end stays.
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
fn add(sum: &mut [u8], factor: u8, shard: &[u8]) {
    if factor == 1 {
        for (sum, byte) in sum.iter_mut().zip(shard) {
            *sum ^= byte;
        }
    } else if factor != 0 {
        let row = &PRODUCTS[usize::from(factor)];
        for (sum, byte) in sum.iter_mut().zip(shard) {
            *sum ^= row[usize::from(*byte)];
        }
    }
}

/// The parity of that number over shards of any lengths: shorter ones count as padded with noughts.
pub(crate) fn parity<'a>(number: u8, shards: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sum = Vec::new();
    for (at, shard) in (0..).zip(shards) {
        if shard.len() > sum.len() {
            sum.resize(shard.len(), 0);
        }
        add(&mut sum, coefficient(number, at), shard);
    }
    sum
}

/// Gives back the missing shards, padded to the parities' length: (place, bytes). `None`: too few parities,
/// or parities of unlike lengths.
pub(crate) fn recover(
    shards: &[Option<&[u8]>],
    parities: &[(u8, &[u8])],
) -> Option<Vec<(usize, Vec<u8>)>> {
    let missing: Vec<u8> = (0..)
        .zip(shards)
        .filter(|(_, shard)| shard.is_none())
        .map(|(at, _)| at)
        .collect();
    let parities = parities.get(..missing.len())?;
    let length = parities.first().map_or(0, |(_, bytes)| bytes.len());
    if parities.iter().any(|(_, bytes)| bytes.len() != length) {
        return None;
    }
    // What of each parity the missing shards account for, and by which factors.
    let rests: Vec<Vec<u8>> = parities
        .iter()
        .map(|(number, bytes)| {
            let mut rest = bytes.to_vec();
            for (at, shard) in (0..).zip(shards) {
                if let Some(shard) = shard {
                    add(&mut rest, coefficient(*number, at), shard);
                }
            }
            rest
        })
        .collect();
    let factors: Vec<Vec<u8>> = parities
        .iter()
        .map(|(number, _)| missing.iter().map(|at| coefficient(*number, *at)).collect())
        .collect();
    let solution = invert(factors)?;
    let recovered = missing.iter().zip(&solution).map(|(at, row)| {
        let mut bytes = vec![0; length];
        for (factor, rest) in row.iter().zip(&rests) {
            add(&mut bytes, *factor, rest);
        }
        (usize::from(*at), bytes)
    });
    Some(recovered.collect())
}

/// Gauss and Jordan.
#[expect(
    clippy::indexing_slicing,
    reason = "rows and columns of a square matrix, counted by its size"
)]
fn invert(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    for (at, row) in matrix.iter_mut().enumerate() {
        row.resize(2 * size, 0);
        row[size + at] = 1;
    }
    for column in 0..size {
        let pivot = (column..size).find(|row| matrix[*row][column] != 0)?;
        matrix.swap(column, pivot);
        let scale = inverse(matrix[column][column]);
        for value in &mut matrix[column] {
            *value = times(*value, scale);
        }
        let pivot = matrix[column].clone();
        for (at, row) in matrix.iter_mut().enumerate() {
            let factor = row[column];
            if at != column {
                add(row, factor, &pivot);
            }
        }
    }
    for row in &mut matrix {
        row.drain(..size);
    }
    Some(matrix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_field_is_one() {
        for a in 1..=255 {
            assert_eq!(times(a, inverse(a)), 1);
            assert_eq!(times(a, 1), a);
            assert_eq!(times(a, 0), 0);
        }
        assert_eq!(times(0x80, 2), 0x1d);
        assert_eq!(times(7, times(9, 200)), times(times(7, 9), 200));
    }

    #[test]
    fn the_first_parity_is_the_plain_xor() {
        let shards: [&[u8]; 3] = [&[1, 2, 3], &[4], &[8, 8]];
        assert_eq!(parity(0, shards.into_iter()), [1 ^ 4 ^ 8, 2 ^ 8, 3]);
    }

    proptest! {
        #[test]
        fn as_many_parities_as_are_lost_give_all_back(
            shards in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..60), 1..=MAX_SHARDS),
            lost in proptest::collection::vec(any::<prop::sample::Index>(), 1..20),
            first_parity in 0u8..40,
        ) {
            let lost: std::collections::BTreeSet<_> =
                lost.iter().map(|index| index.index(shards.len())).collect();
            let parities: Vec<_> = (first_parity..first_parity + lost.len() as u8)
                .map(|number| (number, parity(number, shards.iter().map(Vec::as_slice))))
                .collect();
            let parities: Vec<_> = parities.iter().map(|(number, bytes)| (*number, bytes.as_slice())).collect();
            let left: Vec<_> = shards
                .iter()
                .enumerate()
                .map(|(at, shard)| (!lost.contains(&at)).then_some(shard.as_slice()))
                .collect();
            let recovered = recover(&left, &parities).unwrap();
            prop_assert_eq!(recovered.len(), lost.len());
            for (at, bytes) in recovered {
                prop_assert_eq!(&bytes[..shards[at].len()], shards[at].as_slice());
                prop_assert!(bytes[shards[at].len()..].iter().all(|byte| *byte == 0));
            }
            prop_assert!(recover(&left, &parities[1..]).is_none());
        }
    }
}
