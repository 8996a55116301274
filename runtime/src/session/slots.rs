//! Which sequence of the engine holds which tokens, for whom, and under which adapter.
//!
//! A prompt goes to the sequence of its owner that it shares the most tokens with, so that the next turn of a chat is read
//! only from where it is new. Nobody gets a sequence that holds somebody else's tokens without its being emptied: how fast
//! an answer begins would tell what others asked.

use super::Session;

impl Session {
    /// Goes on with the cache of `owner` that `prompt` begins like, or with an emptied one: with the one that was not used
    /// for longest, when none is empty. What one owner asked speeds up no other's answer.
    pub fn take_slot(&mut self, owner: u64, prompt: &[u32]) {
        if self.slots.take(owner, prompt) {
            self.engine.truncate(self.slots.seq(), 0);
        }
    }
}

/// One sequence.
#[derive(Debug, Clone, Default)]
struct Slot {
    tokens: Vec<u32>,
    owner: u64,
    adapter: Option<usize>,
    /// Time of the last use, on a clock that counts uses.
    used: u64,
}

/// All sequences of an engine, one of them in use.
#[derive(Debug)]
pub(super) struct Slots {
    all: Vec<Slot>,
    seq: usize,
    uses: u64,
    /// What the sequence in use, and those taken from here on, are computed with.
    pub adapter: Option<usize>,
}

impl Slots {
    pub fn new(n: usize) -> Self {
        Self { all: vec![Slot::default(); n.max(1)], seq: 0, uses: 0, adapter: None }
    }

    /// The sequence in use.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Tokens of the sequence in use.
    pub fn tokens(&mut self) -> &mut Vec<u32> {
        &mut self.all[self.seq].tokens
    }

    /// Number of tokens of the sequence in use.
    pub fn len(&self) -> usize {
        self.all[self.seq].tokens.len()
    }

    /// Takes a sequence for `prompt` into use; `true` when the engine must empty it first.
    pub fn take(&mut self, owner: u64, prompt: &[u32]) -> bool {
        self.uses += 1;
        let common = |slot: &Slot| slot.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // A beginning that all prompts share (a template's first words) is no reason to overwrite another chat.
        let mine = |slot: &Slot| (slot.owner, slot.adapter) == (owner, self.adapter);
        let fits = |slot: &Slot| mine(slot) && 2 * common(slot) >= slot.tokens.len().min(prompt.len()).max(1);
        let best = (0..self.all.len()).filter(|&i| fits(&self.all[i])).max_by_key(|&i| common(&self.all[i]));
        let oldest = || (0..self.all.len()).min_by_key(|&i| (!self.all[i].tokens.is_empty(), self.all[i].used));
        self.seq = best.or_else(oldest).unwrap_or(0);
        let slot = &mut self.all[self.seq];
        slot.used = self.uses;
        let stranger = std::mem::replace(&mut slot.owner, owner) != owner;
        if stranger {
            slot.tokens.clear();
        }
        stranger
    }

    /// The sequence in use is under the adapter in use, and was read under no other.
    pub fn settle(&mut self) {
        let slot = &mut self.all[self.seq];
        if std::mem::replace(&mut slot.adapter, self.adapter) != self.adapter {
            slot.tokens.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;

    /// Uses a sequence for `prompt`, as a session does.
    fn ask(slots: &mut Slots, owner: u64, prompt: &[u32]) -> (usize, bool) {
        let emptied = slots.take(owner, prompt);
        *slots.tokens() = prompt.to_vec();
        (slots.seq(), emptied)
    }

    #[test]
    fn a_second_turn_finds_its_first_and_another_chat_gets_an_empty_sequence() {
        let mut slots = Slots::new(2);
        let (a, _) = ask(&mut slots, 7, &[1, 2, 3, 4]);
        let (b, _) = ask(&mut slots, 7, &[1, 8, 9, 9]);
        assert_ne!(a, b, "one shared token of four is no reason to overwrite");
        assert_eq!(ask(&mut slots, 7, &[1, 2, 3, 4, 5, 6]), (a, false));
        assert_eq!(ask(&mut slots, 7, &[1, 8, 9, 9, 9]), (b, false));
        assert_eq!(ask(&mut slots, 7, &[5, 5]).0, a, "the one not used for longest makes room");
    }

    #[test]
    fn what_one_owner_asked_is_never_seen_by_another() {
        let mut slots = Slots::new(1);
        ask(&mut slots, 7, &[1, 2, 3]);
        assert!(slots.take(8, &[1, 2, 3]), "the engine must forget it");
        assert_eq!(slots.len(), 0);
        assert!(slots.take(7, &[1, 2, 3]));
    }

    #[test]
    fn what_one_adapter_computed_is_not_gone_on_with_under_another() {
        let mut slots = Slots::new(2);
        let (base, _) = ask(&mut slots, 7, &[1, 2, 3]);
        slots.adapter = Some(0);
        let (tuned, _) = ask(&mut slots, 7, &[1, 2, 3]);
        assert_ne!(base, tuned, "an empty sequence is taken");
        slots.settle();
        assert_eq!(slots.len(), 0);
        *slots.tokens() = vec![1, 2, 3];
        slots.settle();
        assert_eq!(slots.len(), 3);
        slots.adapter = None;
        assert_eq!(ask(&mut slots, 7, &[1, 2, 3, 4]), (base, false));
        slots.settle();
        assert_eq!(slots.len(), 4);
    }
}
