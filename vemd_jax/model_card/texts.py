"""Fixed passages of the model card and the impact assessment."""

_ARTICLE_5 = (
    'https://eur-lex.europa.eu/legal-content/EN/TXT/?uri=OJ:L_202401689'
)

INTENDED = (
    'Research on the emotion of groups in photographs and clips, and the '
    'description of groups whose members know of it and agree to it.',
    'The output describes a group. It is an estimate of what annotators would '
    'say about a picture like the training pictures, no measurement of what '
    'anybody feels.',
)

PROHIBITED = (
    '**Workplaces and educational institutions.** The EU AI Act, '
    f'[Article 5(1)(f)]({_ARTICLE_5}), prohibits systems that infer emotions '
    'of natural persons there, medical and safety reasons aside. Classroom '
    'engagement is covered. Nothing we found decides whether a purely '
    'aggregate output falls outside it.',
    '**Single people.** Do not crop pictures to one person to get around the '
    'group. An exported model can abstain for such pictures '
    '(`vemd export --min_people`), within the error of its decoders.',
    '**Decisions about people**: employment, credit, insurance, policing, '
    'migration, access to services.',
    '**Re-identification**, or the inference of attributes of a person from '
    'the latent or the decoded structure.',
)

DUTIES = (
    'Elsewhere emotion recognition is high-risk under Annex III of the AI Act, '
    'and deployers must tell the people who are exposed to it, Article 50(3).',
    'Pictures of people, and skeletons decoded from them, are personal data '
    'under the GDPR.',
)

NO_ANONYMITY = (
    'There is no claim of anonymity. Skeletons alone allow re-identification '
    '(80 %) and gender inference (87 %) in published work '
    '([arXiv 2111.15129](https://arxiv.org/abs/2111.15129)).'
)

NOT_AUDITED = (
    'What this model’s latent, its decoded structure and its weights reveal '
    'has not been measured; `vemd audit` measures it.'
)

AUDITED = (
    'Measured by `vemd audit`, with attackers that are fitted on the training '
    'split and tested on the split val. An attack that fails shows that this '
    'attack fails, not that none succeeds. In brackets: 95 % bootstrap '
    'intervals. pixels: the input of the model, as a baseline.'
)

LIMITS = (
    'It reproduces its annotators, with their culture and their disagreement.',
    'Accuracy on other cameras, places and populations than those of the '
    'training data is unknown. No results by age, gender or skin colour exist, '
    'unless the table by source below separates them.',
    'Intervals are Wilson’s, 95 %, and treat the samples as independent; '
    'pictures of the same event or video are not.',
)

TO_FILL = '**To be filled in by the controller.**'
