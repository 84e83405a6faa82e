//! A tokenizer made from texts: byte-level BPE, as GPT-2's.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Backend};

use crate::error::ModelError;

/// The token that begins and ends texts; its id is 0.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// Trains a tokenizer of at most so many tokens on texts: all bytes are tokens, then come the merges of the most frequent
/// pairs within words. Returns its `tokenizer.json` and how many tokens it has. The same texts give the same bytes.
///
/// # Errors
/// The texts cannot be worked on.
pub(crate) fn train_byte_level<'t>(
    texts: impl Iterator<Item = &'t str> + Send,
    vocabulary: usize,
) -> Result<(String, usize), ModelError> {
    let failed = |error: String| ModelError::Input {
        problem: format!("no tokenizer could be trained on the text: {error}"),
    };
    let pieces = ByteLevel::default().add_prefix_space(false);
    let mut backend = Backend::new(BPE::default());
    backend.with_pre_tokenizer(Some(pieces));
    backend.with_decoder(Some(pieces));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    backend
        .train(&mut trainer, texts)
        .map_err(|error| failed(error.to_string()))?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{END_OF_TEXT} $A"))
        .map_err(|error| failed(error.clone()))?
        .special_tokens(vec![(END_OF_TEXT, 0)])
        .build()
        .map_err(|error| failed(error.to_string()))?;
    backend.with_post_processor(Some(template));
    let json = backend
        .to_string(true)
        .map_err(|error| failed(error.to_string()))?;
    Ok((json, backend.get_vocab_size(true)))
}
