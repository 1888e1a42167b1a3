"""Text to ids and back: characters, words, sentencepiece BPE."""
