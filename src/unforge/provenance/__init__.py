"""Did this autoregressive model make this image? Signals, token search, baselines, inverse decoders and rates.

Everything takes a tokenizer (encoder, quantizer, decoder) and images; nothing knows a dataset or a table.
`rates` is torch-free. Source: iar_provenance; where the note is silent, its released code.
"""
