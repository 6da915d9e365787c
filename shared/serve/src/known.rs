//! Telling an unknown stream from one that has nothing to give.

use model::StreamName;
use store::{Store, StoreError, StreamSummary};

use crate::answer::Refusal;

/// What is known of a stream, or the refusal that says which streams there are. Blocks.
pub(crate) fn known(store: &Store, stream: &StreamName) -> Result<StreamSummary, Refusal> {
    let failed = |error: StoreError| Refusal::internal("read the list of streams", &error);
    match store.stream(stream) {
        Ok(Some(summary)) => Ok(summary),
        Ok(None) | Err(StoreError::NoSuchStream(_)) => {
            let streams = store.streams().map_err(failed)?;
            let names = streams.iter().map(|s| &s.name);
            Err(Refusal::no_stream(stream, names))
        }
        Err(error) => Err(failed(error)),
    }
}
