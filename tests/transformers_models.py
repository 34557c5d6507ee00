"""Tiny, randomly initialised audio encoders of transformers, as folders."""

import pathlib

import numpy as np

WAVES = {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4,
         'intermediate_size': 48, 'conv_dim': (16,) * 7,
         'num_conv_pos_embeddings': 16, 'num_conv_pos_embedding_groups': 4}
LAYERED = {**WAVES, 'feat_extract_norm': 'layer', 'do_stable_layer_norm': True}
SEW = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
       'intermediate_size': 48, 'squeeze_factor': 2, 'conv_dim': (16,) * 13,
       'num_conv_pos_embeddings': 16, 'num_conv_pos_embedding_groups': 4}
SEW_D = {**SEW, 'conv_pos_kernel_size': 7, 'position_buckets': 16,
         'max_position_embeddings': 32}
# Name -> (config class, its arguments, model class, extractor class, its own).
MODELS = {
    'wav2vec2': ('Wav2Vec2Config', WAVES, 'Wav2Vec2Model',
                 'Wav2Vec2FeatureExtractor', {'do_normalize': True}),
    'wav2vec2-large': ('Wav2Vec2Config', LAYERED, 'Wav2Vec2Model',
                       'Wav2Vec2FeatureExtractor',
                       {'return_attention_mask': True}),
    'wav2vec2-conformer': ('Wav2Vec2ConformerConfig', LAYERED,
                           'Wav2Vec2ConformerModel',
                           'Wav2Vec2FeatureExtractor', {}),
    'hubert': ('HubertConfig', WAVES, 'HubertModel',
               'Wav2Vec2FeatureExtractor', {'do_normalize': False}),
    'hubert-large': ('HubertConfig', LAYERED, 'HubertModel',
                     'Wav2Vec2FeatureExtractor', {}),
    'wavlm': ('WavLMConfig', WAVES, 'WavLMModel', 'Wav2Vec2FeatureExtractor',
              {'do_normalize': False}),
    'wavlm-large': ('WavLMConfig', LAYERED, 'WavLMModel',
                    'Wav2Vec2FeatureExtractor', {}),
    'data2vec': ('Data2VecAudioConfig', {**WAVES, 'conv_pos_kernel_size': 7},
                 'Data2VecAudioModel', 'Wav2Vec2FeatureExtractor', {}),
    'unispeech': ('UniSpeechConfig', LAYERED, 'UniSpeechModel',
                  'Wav2Vec2FeatureExtractor', {}),
    'unispeech-sat': ('UniSpeechSatConfig', LAYERED, 'UniSpeechSatModel',
                      'Wav2Vec2FeatureExtractor', {}),
    'sew': ('SEWConfig', SEW, 'SEWModel', 'Wav2Vec2FeatureExtractor', {}),
    'sew-d': ('SEWDConfig', SEW_D, 'SEWDModel', 'Wav2Vec2FeatureExtractor',
              {}),
    'wav2vec2-bert': ('Wav2Vec2BertConfig', {
        'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48}, 'Wav2Vec2BertModel',
        'SeamlessM4TFeatureExtractor', {}),
    'whisper': ('WhisperConfig', {
        'd_model': 32, 'encoder_layers': 2, 'decoder_layers': 1,
        'encoder_attention_heads': 2, 'decoder_attention_heads': 2,
        'encoder_ffn_dim': 48, 'decoder_ffn_dim': 48, 'vocab_size': 50,
        'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2,
        'decoder_start_token_id': 1, 'suppress_tokens': None,
        'begin_suppress_tokens': None}, 'WhisperModel',
        'WhisperFeatureExtractor', {}),
    'ast': ('ASTConfig', {
        'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48, 'max_length': 1024}, 'ASTModel',
        'ASTFeatureExtractor', {}),
    'clap': ('ClapConfig', {
        'text_config': {'hidden_size': 16, 'num_hidden_layers': 1,
                        'num_attention_heads': 2, 'intermediate_size': 16,
                        'vocab_size': 20},
        'audio_config': {'patch_embeds_hidden_size': 8,
                         'depths': [1, 1, 1, 1], 'hidden_size': 64,
                         'num_attention_heads': [2, 2, 2, 2]},
        'projection_dim': 12}, 'ClapModel', 'ClapFeatureExtractor',
        {'truncation': 'rand_trunc'})}
MODELS['clap-fused'] = (
    MODELS['clap'][0],
    {**MODELS['clap'][1], 'audio_config': {
        **MODELS['clap'][1]['audio_config'], 'enable_fusion': True}},
    *MODELS['clap'][2:4], {'truncation': 'fusion'})
# As the config.json of OpenMuQ's repositories, in small.
MUQ = {'label_rate': 25, 'num_codebooks': 1, 'codebook_dim': 4,
       'codebook_size': 16, 'features': ['melspec_2048'], 'hop_length': 240,
       'n_mels': 128, 'conv_dim': 8, 'encoder_dim': 32, 'encoder_depth': 2,
       'is_flash': False,
       'stat': {'melspec_2048_mean': 6.8, 'melspec_2048_std': 18.4},
       'w2v2_config': {
           'hidden_act': 'swish', 'num_attention_heads': 4,
           'intermediate_size': 48, 'layer_norm_eps': 1e-5,
           'position_embeddings_type': 'rotary', 'rotary_embedding_base': 10000,
           'num_conv_pos_embeddings': 16, 'num_conv_pos_embedding_groups': 4,
           'conv_depthwise_kernel_size': 31, 'conformer_conv_dropout': .1,
           'hidden_dropout': .1, 'activation_dropout': .1,
           'attention_dropout': 0., 'layerdrop': 0.,
           'max_source_positions': 5000, 'feat_extract_activation': 'gelu'}}


def write(name: str, folder: pathlib.Path):
  """Writes a model of MODELS as save_pretrained does; returns its folder."""
  import torch
  import transformers
  config, arguments, model, extractor, settings = MODELS[name]
  torch.manual_seed(0)
  made = getattr(transformers, model)(
      getattr(transformers, config)(**arguments))
  with torch.no_grad():
    # Biases and scales start at 0 and 1, which hides what is left out.
    for p in made.parameters():
      p.add_(.05 * torch.randn_like(p))
  made.save_pretrained(folder)
  getattr(transformers, extractor)(**settings).save_pretrained(folder)
  (folder / 'README.md').write_text('---\nlicense: mit\ntags: [x]\n---\n')
  return folder


def clips(rate: int, seconds=(.9, .5, .9, 1.3, .02)):
  """Returns noise of several lengths, each with its own loudness."""
  rng = np.random.default_rng(0)
  return [(rng.uniform(.02, .3) * rng.standard_normal(int(s * rate))).clip(
      -1, 1).astype(np.float32) for s in seconds]
