//! UDP: datagrams are counted, and the count is told.

use std::future::poll_fn;

use portcullis::onramp::wireguard::socket::{Outbox, ReceiveBuffers, WireguardSocket};

/// What a question and its answer begin with. It is longer than a load of the smallest size.
const MAGIC: &[u8; 16] = b"portcullis-sink?";

/// A question about the count, told apart from other questions by a number of the sender's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query(pub(crate) u64);

impl Query {
    /// Bytes of the question.
    pub(crate) const LENGTH: usize = 24;
    /// Bytes of the answer.
    pub(crate) const ANSWER: usize = 32;

    /// The question.
    pub(crate) fn question(self) -> [u8; Self::LENGTH] {
        let mut question = [0; Self::LENGTH];
        let (magic, number) = question.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        number.copy_from_slice(&self.0.to_be_bytes());
        question
    }

    /// The count in an answer to this question.
    pub(crate) fn count(self, answer: &[u8]) -> Option<u64> {
        let count = answer.strip_prefix(self.question().as_slice())?;
        count.try_into().ok().map(u64::from_be_bytes)
    }

    /// The question in a datagram.
    fn parse(datagram: &[u8]) -> Option<Self> {
        let number = datagram.strip_prefix(MAGIC.as_slice())?;
        number.try_into().ok().map(|number| Self(u64::from_be_bytes(number)))
    }

    fn answer(self, count: u64) -> [u8; Self::ANSWER] {
        let mut answer = [0; Self::ANSWER];
        let (question, number) = answer.split_at_mut(Self::LENGTH);
        question.copy_from_slice(&self.question());
        number.copy_from_slice(&count.to_be_bytes());
        answer
    }
}

/// Counts for ever; the count never starts again, askers look at what it has grown by.
pub(super) async fn serve(socket: WireguardSocket) {
    let mut memory = ReceiveBuffers::default();
    let mut outbox = Outbox::default();
    let mut count = 0;
    loop {
        // An error is about an answer sent earlier: the next call goes on.
        let _ = poll_fn(|cx| {
            socket.poll_receive(cx, &mut memory, |from, datagram| match Query::parse(datagram) {
                Some(query) => outbox.queue(from, &query.answer(count)),
                None => count += 1,
            })
        })
        .await;
        poll_fn(|cx| socket.poll_flush(cx, &mut outbox, |_, _| {})).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_for_its_question() {
        let query = Query(7);
        assert_eq!(Query::parse(&query.question()), Some(query));
        assert_eq!(query.count(&query.answer(99)), Some(99));
        assert_eq!(Query(8).count(&query.answer(99)), None);
        assert_eq!(Query::parse(&query.answer(99)), None);
        assert_eq!(Query::parse(b""), None);
    }
}
